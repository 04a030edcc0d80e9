"""Training checkpoints with the published content: ``{model, optimizer, config, epoch}``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from blip_fast.checkpoints import load_state
from blip_fast.checkpoints.files import write_atomically
from blip_fast.checkpoints.published import read_content
from blip_fast.optim import AdamWMomentum
from blip_fast.training.parallel import like, whole_tensors
from blip_fast.training.trainer import Trainer

BEST = "checkpoint_best.pth"
_NUMBERED = re.compile(r"checkpoint_(\d{2,})\.pth")


class WriteError(RuntimeError):
    """A file could not be written; an older one of that name is still there."""


def write_content(path: Path, content: Mapping[str, Any]) -> None:
    """Write a dictionary so that ``path`` is the old or the new file at any moment."""
    try:
        write_atomically(path, lambda part: torch.save(dict(content), part))
    except (OSError, RuntimeError) as error:  # the latter is what torch.save makes of a full disk
        kept = f"; the one before is still there ({path.stat().st_size:,} bytes)" if path.exists() else ""
        raise WriteError(f"{path} could not be written{kept}: {str(error).splitlines()[0]}") from error


def read_training_checkpoint(path: Path) -> dict[str, Any]:
    """A dictionary of tensors and plain values from a file. ValueError where it is something else, or damaged."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {str(path)!r}")
    content = read_content(path)
    if not isinstance(content, dict) or "model" not in content:
        raise ValueError(f"{path} holds no training checkpoint; expected a dictionary with 'model'")
    return content


def published_content(trainer: Trainer[Any], config: Mapping[str, Any], epoch: int) -> dict[str, Any]:
    """What a published program stores after an epoch. All ranks call it; tensors are whole on each."""
    return {
        "model": whole_tensors(trainer.model.state_dict()),
        "optimizer": whole_tensors(trainer.optimizer.state_dict()),
        "config": dict(config),
        "epoch": epoch,
    }


def load_published(trainer: Trainer[Any], path: Path) -> int:
    """Load model and optimizer of a checkpoint, a published one or our own; returns the epoch it was written after."""
    content = read_training_checkpoint(path)
    missing = [name for name in ("optimizer", "epoch") if name not in content]
    if missing:
        raise ValueError(f"{path} has no '{missing[0]}': it holds a model only, which is what 'pretrained' is for")
    load_model(trainer.model, content["model"], path)
    load_optimizer(trainer.optimizer, content["optimizer"], path)
    return int(content["epoch"])


def load_model(model: nn.Module, state: Mapping[str, Any], path: Path) -> None:
    """Load a complete state_dict. ValueError where a tensor of the model is missing or of another shape."""
    own = model.state_dict()
    fitting = {name: like(tensor, own[name]) if name in own else tensor for name, tensor in state.items()}
    report = load_state(model, fitting)
    if report.initial or report.reshaped:
        bad = [*report.initial, *report.reshaped]
        raise ValueError(f"{path} does not fit the model of these settings: {len(bad)} tensors are missing or have "
                         f"another shape, '{bad[0]}' first")  # fmt: skip


def load_optimizer(optimizer: AdamWMomentum, state: Mapping[str, Any], path: Path) -> None:
    """Load a state of `torch.optim.AdamW` or `AdamWMomentum`, cut as the parameters are."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    entries: dict[int, dict[str, Any]] = {}
    for index, entry in state["state"].items():
        if not 0 <= index < len(params) or entry["exp_avg"].shape != params[index].shape:
            raise ValueError(f"{path} has an optimizer state for other parameters (number {index} does not fit)")
        entries[index] = {
            name: like(value, params[index]) if name != "step" else value for name, value in entry.items()
        }
    try:
        optimizer.load_state_dict({"state": entries, "param_groups": state["param_groups"]})
    except ValueError as error:
        raise ValueError(f"{path} has an optimizer state that does not fit: {error}") from error


def prune_numbered(folder: Path, keep: int, epoch: int) -> None:
    """Delete all but the ``keep`` newest ``checkpoint_NN.pth`` up to ``epoch``; 0 keeps all. Later ones are another run's."""
    numbered = sorted(
        (int(found.group(1)), path) for path in folder.iterdir() if (found := _NUMBERED.fullmatch(path.name))
    )
    past = [path for number, path in numbered if number <= epoch]
    for path in past[:-keep] if keep else []:
        path.unlink()
