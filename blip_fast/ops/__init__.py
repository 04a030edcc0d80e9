"""The fused operations. Each works on every backend (`blip_fast.backend`), under autocast and torch.compile."""

from __future__ import annotations

from blip_fast.ops.enqueue import enqueue_
from blip_fast.ops.momentum import momentum_update_

__all__ = ["enqueue_", "momentum_update_"]
