"""Contrastive loss of 16 pairs, by length of the queue."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..job import Case, Setting
from ..ops.contrastive import ALPHA, contrastive_case
from .sweep import point

PLACE = 111
BATCH = 16
QUEUES = (3_600, 14_400, 57_600)
MORE = (900, 7_200, 28_800, 115_200, 230_400)


def cases(setting: Setting) -> Iterable[Case]:
    """Three lengths up to the published one; with ``--full`` up to four times that."""
    dtype = torch.bfloat16 if setting.device.type == "cuda" else torch.float32
    for queued in QUEUES if setting.quick else sorted(QUEUES + MORE):
        yield point(contrastive_case(BATCH, queued, ALPHA, dtype, setting.device), "queue", queued)
