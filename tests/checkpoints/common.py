"""Small models with random weights, and what tests of checkpoints ask of them."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast

from blip_fast import reference
from blip_fast.checkpoints import PretrainedModel
from blip_fast.checkpoints.heads import HEADS
from blip_fast.config import BlipConfig

CLASSES: dict[str, type[PretrainedModel]] = {name: getattr(reference, head.class_name) for name, head in HEADS.items()}
SIZES: dict[str, Any] = dict(
    text_layers=2,
    text_width=64,
    text_heads=1,
    text_intermediate=32,
    vocab_size=300,
    max_position_embeddings=24,
    vit_width=64,
    vit_depth=2,
    vit_heads=1,
    vit_patch=8,
    vit_mlp_ratio=2.0,
    image_size=32,
    embed_dim=16,
    queue_size=12,
)


def small_config(**overrides: Any) -> BlipConfig:
    """A configuration that shapes alone tell: 64 channels per attention head, as in the published models."""
    return BlipConfig(**(SIZES | overrides))


def build(head: str, seed: int = 0, **overrides: Any) -> PretrainedModel:
    """A model in eval mode of which no parameter has a trivial value and no two parameters are alike."""
    torch.manual_seed(seed)
    return perturb(CLASSES[head](small_config(**overrides)))


def perturb(model: nn.Module) -> Any:
    """Move every parameter off its initial value; the model, in eval mode."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.eval()


def assert_same_state(actual: nn.Module, expected: nn.Module) -> None:
    """Equal names and bits."""
    first, second = actual.state_dict(), expected.state_dict()
    assert list(first) == list(second)
    differing = [name for name in first if not torch.equal(first[name], second[name])]
    assert not differing


def small_tokenizer() -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer of 300 entries with BERT's special tokens where BERT has them."""
    vocabulary = [f"[unused{number}]" for number in range(298)]
    vocabulary[0] = "[PAD]"
    vocabulary[100:104] = ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary[110:115] = ["a", "picture", "of", "cat", "dog"]
    tokenizer = Tokenizer(models.WordPiece({token: n for n, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 101), ("[SEP]", 102)]
    )
    tokenizer.add_special_tokens(["[DEC]", "[ENC]"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="[DEC]",
        additional_special_tokens=["[ENC]"],
        unk_token="[UNK]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "attention_mask"],
    )
