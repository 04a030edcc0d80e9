"""Published checkpoints: ``.pth`` files with {model, optimizer, config, epoch} or a bare state_dict, in and out."""

from __future__ import annotations

import dataclasses
import math
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from blip_fast.checkpoints.files import write_atomically
from blip_fast.checkpoints.heads import head_of
from blip_fast.config import BlipConfig, mlp_ratio, published_drop_path

State = dict[str, Tensor]
CHECKPOINT_FILE = "checkpoint.pth"
_HEAD_CHANNELS = 64  # per attention head, in every published model
# What the readers raise where bytes are not what they should be.
_DAMAGED = (SafetensorError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError)
_VIT = "visual_encoder."
_TEXT = ("text_encoder.", "text_decoder.bert.")


def read_state(path: Path) -> tuple[State, dict[str, Any]]:
    """Tensors by name, and the settings stored with them (empty if there are none), from ``.pth`` or ``.safetensors``.

    Nothing but tensors and plain values is unpickled. ValueError where the file is of another kind.
    """
    content = read_content(path)
    state = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(state, Mapping) or not state or not all(map(_is_entry, state.items())):
        raise ValueError(f"{path} holds no model; expected a state_dict, or a dictionary with one under 'model'")
    settings = content.get("config") if state is not content else None
    # What torch.compile and DistributedDataParallel put into names.
    named = {name.replace("_orig_mod.", "").removeprefix("module."): tensor for name, tensor in state.items()}
    return named, dict(settings) if isinstance(settings, Mapping) else {}


def _is_entry(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def read_content(path: Path) -> Any:
    """What a file holds, on the CPU. ValueError where it is damaged, or holds more than tensors and plain values."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Files older than torch 1.6 are no zip archives and cannot be mapped into memory.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is no checkpoint of tensors and plain values; other pickles are not loaded"
        ) from error
    except _DAMAGED as error:
        raise ValueError(f"{path} is damaged, or no checkpoint at all") from error


def write_checkpoint(path: Path, model: nn.Module, config: BlipConfig) -> None:
    """Write {model, config} with all published names, tied ones too, as the published programs load it."""
    content = {"model": dict(model.state_dict()), "config": config.to_dict()}
    write_atomically(path, lambda part: torch.save(content, part))


def config_values(state: Mapping[str, Tensor], settings: Mapping[str, Any], head: str | None) -> dict[str, Any]:
    """Fields of the configuration that a published checkpoint was made with.

    Sizes are read off the tensors; the number of heads follows from the width (64 channels each), drop path from size
    and head, as published. Fields of the same name in the stored settings, of checkpoints written here, come before
    these two and fill in what tensors do not show. ValueError where a BLIP model's parts are absent.
    """
    text = next((prefix for prefix in _TEXT if f"{prefix}embeddings.word_embeddings.weight" in state), None)
    if f"{_VIT}pos_embed" not in state or text is None:
        raise ValueError("no BLIP model: there is no image encoder beside a text encoder or decoder")
    sizes = _image_sizes(state) | _text_sizes(state, text)
    for name, field, axis in (("vision_proj.weight", "embed_dim", 0), ("image_queue", "queue_size", 1)):
        if name in state:
            sizes[field] = state[name].shape[axis]
    known = {field.name for field in dataclasses.fields(BlipConfig)}
    guessed = dict(
        drop_path=published_drop_path(head or head_of(state), large=sizes["vit_width"] > BlipConfig.vit_width),
        vit_heads=max(sizes["vit_width"] // _HEAD_CHANNELS, 1),
        text_heads=max(sizes["text_width"] // _HEAD_CHANNELS, 1),
    )
    return guessed | {name: value for name, value in settings.items() if name in known} | sizes


def _image_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    width, patch = state[f"{_VIT}patch_embed.proj.weight"].shape[0], state[f"{_VIT}patch_embed.proj.weight"].shape[-1]
    return dict(
        vit_width=width,
        vit_depth=_layers(state, f"{_VIT}blocks."),
        vit_patch=patch,
        vit_mlp_ratio=mlp_ratio(width, state[f"{_VIT}blocks.0.mlp.fc1.weight"].shape[0]),
        image_size=math.isqrt(state[f"{_VIT}pos_embed"].shape[1] - 1) * patch,
    )


def _text_sizes(state: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    vocabulary, width = state[f"{prefix}embeddings.word_embeddings.weight"].shape
    return dict(
        text_layers=_layers(state, f"{prefix}encoder.layer."),
        text_width=width,
        text_intermediate=state[f"{prefix}encoder.layer.0.intermediate.dense.weight"].shape[0],
        vocab_size=vocabulary,
        max_position_embeddings=state[f"{prefix}embeddings.position_embeddings.weight"].shape[0],
    )


def _layers(state: Mapping[str, Tensor], prefix: str) -> int:
    numbers = (re.match(rf"{re.escape(prefix)}(\d+)\.", name) for name in state)
    return 1 + max((int(found.group(1)) for found in numbers if found), default=-1)
