"""A trained model as a folder: weights, configuration and tokenizer, written so that no half-written file remains."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

CHECKPOINT_FILE = "checkpoint.pth"
CONFIG_FILE = "config.json"


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file beside ``path``, then rename it: ``path`` is complete or unchanged, at any moment."""
    target = Path(path)
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        write(beside)
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def save_model_folder(
    folder: str | os.PathLike[str],
    state: dict[str, torch.Tensor],
    config: dict[str, Any],
    tokenizer: PreTrainedTokenizerFast,
    epoch: int,
) -> None:
    """Write the published checkpoint dictionary (model, config, epoch), the configuration and the tokenizer."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = {"model": state, "config": config, "epoch": epoch}
    write_atomically(folder / CHECKPOINT_FILE, lambda path: torch.save(checkpoint, path))
    text = json.dumps(config, indent=2) + "\n"
    write_atomically(folder / CONFIG_FILE, lambda path: path.write_text(text, encoding="utf-8"))
    tokenizer.save_pretrained(folder)


def load_model_folder(
    folder: str | os.PathLike[str],
) -> tuple[dict[str, torch.Tensor], dict[str, Any], PreTrainedTokenizerFast]:
    """State, configuration and tokenizer from a folder written by :func:`save_model_folder`."""
    folder = Path(folder)
    checkpoint = torch.load(folder / CHECKPOINT_FILE, map_location="cpu", weights_only=True)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    return checkpoint["model"], checkpoint["config"], tokenizer
