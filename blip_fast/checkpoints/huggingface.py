"""Hugging Face folders: names, configuration and files of transformers' BLIP classes, in and out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from torch import Tensor, nn

from blip_fast.checkpoints.files import CONFIG_FILE
from blip_fast.checkpoints.heads import HEADS
from blip_fast.checkpoints.loading import tied_names
from blip_fast.checkpoints.sources import WEIGHT_FILES
from blip_fast.config import TEXT_FIELDS, VISION_FIELDS, BlipConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_CONFIG = "tokenizer_config.json"

# (transformers, published): parts of the image encoder by the beginning of their names, then layers within its blocks.
_PARTS = (
    ("vision_model.embeddings.class_embedding", "visual_encoder.cls_token"),
    ("vision_model.embeddings.position_embedding", "visual_encoder.pos_embed"),
    ("vision_model.embeddings.patch_embedding", "visual_encoder.patch_embed.proj"),
    ("vision_model.post_layernorm", "visual_encoder.norm"),
    ("vision_model.encoder.layers", "visual_encoder.blocks"),
)
_BLOCK_LAYERS = (
    ("layer_norm1", "norm1"),
    ("layer_norm2", "norm2"),
    ("self_attn.qkv", "attn.qkv"),
    ("self_attn.projection", "attn.proj"),
)
_BLIP_MODEL_TEXT = ("text_model", "text_encoder")  # BlipModel's name; the other classes' text names are the published


def published_name(name: str) -> str:
    """The published name of a tensor of transformers' BLIP classes."""
    return _renamed(name, (*_PARTS, _BLIP_MODEL_TEXT), _BLOCK_LAYERS)


def hf_name(name: str) -> str:
    """The name of a published tensor in transformers' BLIP classes."""
    parts, layers = (tuple((ours, theirs) for theirs, ours in table) for table in (_PARTS, _BLOCK_LAYERS))
    return _renamed(name, parts, layers)


def _renamed(name: str, parts: tuple[tuple[str, str], ...], layers: tuple[tuple[str, str], ...]) -> str:
    for old, new in parts:
        if name == old or name.startswith(f"{old}."):
            name = new + name.removeprefix(old)
            for old_layer, new_layer in layers:
                name = name.replace(f".{old_layer}.", f".{new_layer}.")
            return name
    return name


def hf_config(config: BlipConfig, head: str) -> dict[str, Any]:
    """The ``config.json`` with which transformers builds this model. Queues, momentum and drop path have no place in it."""
    text = {theirs: getattr(config, ours) for theirs, ours in TEXT_FIELDS.items()}
    vision = {theirs: getattr(config, ours) for theirs, ours in VISION_FIELDS.items()}
    special = dict(bos_token_id=config.dec_token_id, sep_token_id=config.sep_token_id, pad_token_id=config.pad_token_id)
    return dict(
        architectures=[HEADS[head].hf_class],
        model_type="blip",
        image_text_hidden_size=config.embed_dim,
        label_smoothing=config.label_smoothing,
        text_config=text | special | dict(encoder_hidden_size=config.vit_width, model_type="blip_text_model"),
        vision_config=vision
        | dict(intermediate_size=int(config.vit_width * config.vit_mlp_ratio), model_type="blip_vision_model"),
    )


def check_exportable(config: BlipConfig, head: str) -> None:
    """ValueError where transformers has no class for this head or cannot build it."""
    class_name = HEADS[head].class_name
    if HEADS[head].hf_class is None:
        possible = ", ".join(other.class_name for other in HEADS.values() if other.hf_class)
        raise ValueError(f"transformers has no class for {class_name}; format='hf' is for {possible}")
    if head == "vqa" and config.vit_width != config.text_width:
        raise ValueError(
            f"vit_width={config.vit_width} differs from text_width={config.text_width}; transformers cannot build a "
            "BlipForQuestionAnswering of two widths"
        )


def hf_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model under transformers' names, without the constant position numbers.

    Tied tensors are there under each of their names: transformers 4 does not tie the language head of every class.
    """
    ties = tied_names(model)
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(".position_ids")}
    return {
        hf_name(name): tensor.clone() if name in ties else tensor.contiguous()  # no two may share memory in the file
        for name, tensor in state.items()
    }


def write_hf_files(
    folder: Path, model: nn.Module, config: BlipConfig, head: str, tokenizer: PreTrainedTokenizerBase | None
) -> None:
    """Write configuration, weights, image preprocessing and, if there is one, the tokenizer into an empty folder."""
    from transformers import BlipImageProcessor

    settings = hf_config(config, head) | dict(dtype=str(next(model.parameters()).dtype).removeprefix("torch."))
    (folder / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    save_file(hf_state(model), folder / WEIGHT_FILES[0], metadata={"format": "pt"})
    BlipImageProcessor(size={"height": config.image_size, "width": config.image_size}).save_pretrained(folder)
    if tokenizer is not None:
        _write_tokenizer(folder, tokenizer)


def _write_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tokenizer files that name BERT's class, as published folders do: class names differ between transformers 4 and 5."""
    tokenizer.save_pretrained(folder)
    path = folder / TOKENIZER_CONFIG
    settings = json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": "BertTokenizer"}
    settings.pop("backend", None)
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def read_hf_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one of transformers' BLIP classes under their published names."""
    return {published_name(name): tensor for name, tensor in state.items()}
