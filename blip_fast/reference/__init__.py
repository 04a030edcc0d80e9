"""BLIP (arXiv 2201.12086) as published, in plain torch: the ground truth for every fused operation, and the baseline.

Read in this order: ``attention``, ``vit``, ``text``, ``decoder`` are the building blocks; ``contrastive``,
``hard_negatives``, ``momentum``, ``enqueue`` the steps of momentum contrast; ``pretrain`` puts them together;
``captioner`` and ``generation`` write texts; ``retrieval``, ``vqa``, ``nlvr``, ``itm``, ``features`` are the other heads.
"""

from blip_fast.config import BlipConfig
from blip_fast.reference.captioner import BlipCaptioner
from blip_fast.reference.contrastive import contrastive_loss
from blip_fast.reference.enqueue import enqueue_
from blip_fast.reference.hard_negatives import draw_hard_negatives, hard_negative_weights
from blip_fast.reference.momentum import momentum_update_
from blip_fast.reference.pretrain import BlipPretrain

__all__ = [
    "BlipCaptioner",
    "BlipConfig",
    "BlipPretrain",
    "contrastive_loss",
    "draw_hard_negatives",
    "enqueue_",
    "hard_negative_weights",
    "momentum_update_",
]
