"""Batches onto the device."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch


def to_device(batch: Any, device: torch.device) -> Any:
    """A copy of dataclasses, tuples, lists and dictionaries with their tensors on ``device``, without waiting for it.

    Entries whose name ends with "mask" stay on the CPU: the host reads the lengths of texts from masks.
    """
    if device.type == "cpu":
        return batch
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        names = [field.name for field in dataclasses.fields(batch) if field.init]
        return dataclasses.replace(batch, **_entries({name: getattr(batch, name) for name in names}, device))
    if isinstance(batch, dict):
        return _entries(batch, device)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(**_entries(dict(zip(batch._fields, batch, strict=True)), device))
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(entry, device) for entry in batch)
    return batch


def _entries(entries: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {name: entry if name.endswith("mask") else to_device(entry, device) for name, entry in entries.items()}
