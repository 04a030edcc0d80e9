"""Weights from which pre-training starts: a Vision Transformer trained on ImageNet, and BERT (paper section 4.1)."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from blip_fast.checkpoints.loading import LoadReport, load_state
from blip_fast.checkpoints.published import read_state
from blip_fast.checkpoints.sources import Source, locate, weight_file

VIT_BASE = "timm/deit_base_patch16_224.fb_in1k"
VIT_LARGE = "timm/vit_large_patch16_224.augreg_in21k"
BERT_BASE = "google-bert/bert-base-uncased"

_IMAGE_ENCODERS = ("visual_encoder", "visual_encoder_m")
_TEXT_BODIES = ("text_encoder", "text_encoder_m", "text_decoder.bert")
_LM_HEAD = "text_decoder.cls"
_NOT_IN_BERT = re.compile(r".*\.crossattention\..*|text_decoder\.cls\..*")
# BLIP has no token types and no pooled output, and judges pairs with a head of its own.
_NOT_IN_BLIP = re.compile(r"(bert\.)?(embeddings\.token_type_embeddings|pooler)\..*|cls\.seq_relationship\..*")
_OLD_NAMES = {".LayerNorm.gamma": ".LayerNorm.weight", ".LayerNorm.beta": ".LayerNorm.bias"}


def load_vit(model: nn.Module, source: Source | Mapping[str, Tensor]) -> LoadReport:
    """Start the image encoder, and its momentum copy if there is one, from a timm ViT or DeiT of the same sizes.

    ``source`` is a state_dict, or names one: a file, a folder or a Hugging Face id. Position embeddings are
    interpolated to the model's image size. Classifiers are reported as unexpected. ValueError where a tensor of the
    encoder is missing or of another shape.
    """
    state = _state(source)
    encoders = [name for name in _IMAGE_ENCODERS if hasattr(model, name)]
    found = {f"{encoder}.{name}": tensor for encoder in encoders for name, tensor in state.items()}
    return _load(model, found, tuple(f"{name}." for name in encoders), "ViT")


def load_bert(model: nn.Module, source: Source | Mapping[str, Tensor]) -> LoadReport:
    """Start the text encoder, its momentum copy and the text decoder, as far as the model has them, from BERT.

    ``source`` is a state_dict of transformers' BertModel or of one of its classes with a head, or names one: a file, a
    folder or a Hugging Face id. Cross-attention keeps its initial values; so do the rows of tokens that BERT's
    vocabulary lacks ([DEC] and [ENC]), whose bias is 0. Where the decoder is tied to the encoder both start from the
    same tensors, and the momentum copy has its own. Token types are left out, as published. ValueError where another
    tensor is missing or of another shape.
    """
    own = model.state_dict()
    found: dict[str, Tensor] = {}
    for name, tensor in _bert_state(source).items():
        if name.startswith("cls."):
            targets = [f"{_LM_HEAD}.{name.removeprefix('cls.')}"]
        else:
            targets = [f"{body}.{name}" for body in _TEXT_BODIES]
        found |= {target: _with_new_rows(tensor, own[target]) for target in targets if target in own}
    bodies = tuple(f"{body}." for body in _TEXT_BODIES)
    return _load(model, found, bodies, "BERT")


def _with_new_rows(tensor: Tensor, own: Tensor) -> Tensor:
    """BERT's rows, then the model's own initial ones, where the model has more tokens; its initial biases are 0."""
    if tensor.shape[1:] != own.shape[1:] or len(tensor) >= len(own):
        return tensor
    return torch.cat([tensor, own[len(tensor) :].to(tensor)])


def _bert_state(source: Source | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BERT's tensors without the prefix that heads add, under today's names, less what BLIP has no place for."""
    state: dict[str, Tensor] = {}
    for name, tensor in _state(source).items():
        if _NOT_IN_BLIP.fullmatch(name):
            continue
        for old, new in _OLD_NAMES.items():
            name = name.replace(old, new)
        state[name.removeprefix("bert.")] = tensor
    return state


def _state(source: Source | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    if isinstance(source, Mapping):
        return source
    path = locate(source)
    return read_state(weight_file(path) if path.is_dir() else path)[0]


def _load(model: nn.Module, state: Mapping[str, Tensor], prefixes: tuple[str, ...], kind: str) -> LoadReport:
    """Load what was found; the report concerns the parts of the model that begin with ``prefixes``."""
    targets = [name for name in model.state_dict() if name.startswith(prefixes)]
    report = load_state(model, state)
    report.missing = [name for name in report.missing if name in targets]
    lacking = [name for name in report.initial if not _NOT_IN_BERT.fullmatch(name)]
    if lacking:
        raise ValueError(f"the {kind} does not fit: {len(lacking)} tensors of the model are missing in it or have "
                         f"another shape, '{lacking[0]}' first")  # fmt: skip
    return report
