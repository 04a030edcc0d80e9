"""The fused operations. Each works on every backend (`blip_fast.backend`), under autocast and torch.compile."""

from __future__ import annotations

from blip_fast.ops.adamw_momentum import adamw_momentum_step_
from blip_fast.ops.contrastive import contrastive_loss
from blip_fast.ops.cross_attention import cross_attention, cross_attention_padded, group_rows
from blip_fast.ops.decode_layer import decode_layer
from blip_fast.ops.dropout_add_layer_norm import dropout_add_layer_norm
from blip_fast.ops.enqueue import enqueue_
from blip_fast.ops.hard_negatives import mine_hard_negatives
from blip_fast.ops.linear import linear
from blip_fast.ops.linear_cross_entropy import linear_cross_entropy
from blip_fast.ops.momentum import momentum_update_
from blip_fast.ops.packed_self_attention import packed_self_attention
from blip_fast.ops.registry import check_environment

check_environment()

__all__ = [
    "adamw_momentum_step_",
    "contrastive_loss",
    "cross_attention",
    "cross_attention_padded",
    "decode_layer",
    "dropout_add_layer_norm",
    "enqueue_",
    "group_rows",
    "linear",
    "linear_cross_entropy",
    "mine_hard_negatives",
    "momentum_update_",
    "packed_self_attention",
]
