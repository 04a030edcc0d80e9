"""Contrastive loss against 57,600 keys, by batch."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from blip_fast.config import BlipConfig

from ..job import Case, Setting
from ..ops.contrastive import ALPHA, contrastive_case
from .sweep import point

PLACE = 110
BATCHES = (4, 16, 64)
MORE = (1, 8, 32, 128, 256)


def cases(setting: Setting) -> Iterable[Case]:
    """Three batches; with ``--full`` up to 256."""
    queued = BlipConfig.base().queue_size
    dtype = torch.bfloat16 if setting.device.type == "cuda" else torch.float32
    for batch in BATCHES if setting.quick else sorted(BATCHES + MORE):
        yield point(contrastive_case(batch, queued, ALPHA, dtype, setting.device), "batch", batch)
