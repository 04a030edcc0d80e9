"""The fused operations. Each works on every backend (`blip_fast.backend`), under autocast and torch.compile."""

from __future__ import annotations

from blip_fast.ops.cross_attention import cross_attention, cross_attention_padded, group_rows
from blip_fast.ops.enqueue import enqueue_
from blip_fast.ops.momentum import momentum_update_

__all__ = ["cross_attention", "cross_attention_padded", "enqueue_", "group_rows", "momentum_update_"]
