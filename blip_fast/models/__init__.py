"""BLIP on the fused operations: the reference's classes, parameters and results, faster."""

from __future__ import annotations

from blip_fast.config import BlipConfig
from blip_fast.models.pretrain import BlipPretrain

__all__ = ["BlipConfig", "BlipPretrain"]
