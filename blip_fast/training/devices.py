"""Batches onto the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


def to_device(batch: Any, device: torch.device) -> Any:
    """A copy of the batch with its tensors on ``device``, without waiting for it.

    Entries whose name ends with "mask" stay on the CPU: the host reads the lengths of texts from masks.
    """
    if device.type == "cpu":
        return batch
    return map_tensors(lambda tensor: tensor.to(device, non_blocking=True), batch, leave="mask")


def map_tensors(function: Callable[[Tensor], Any], batch: Any, leave: str | None = None) -> Any:
    """The batch with every tensor replaced, in tuples, lists, dictionaries and dataclasses; other values as they are.

    So are entries whose name ends with ``leave``.
    """
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        left = {name for name in batch if leave is not None and name.endswith(leave)}
        return {name: value if name in left else map_tensors(function, value, leave) for name, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_asdict"):
        return type(batch)(**map_tensors(function, batch._asdict(), leave))
    if isinstance(batch, (tuple, list)):
        return type(batch)(map_tensors(function, value, leave) for value in batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
        return dataclasses.replace(batch, **map_tensors(function, fields, leave))
    return batch
