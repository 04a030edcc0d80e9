"""BLIP (arXiv 2201.12086) as published, in plain torch: the ground truth for every fused operation, and the baseline.

Read in this order: ``attention``, ``vit``, ``text``, ``decoder`` are the building blocks; ``contrastive``,
``hard_negatives``, ``momentum``, ``enqueue`` the steps of momentum contrast; ``pretrain`` puts them together;
``captioner`` and ``generation`` write texts; ``retrieval``, ``vqa``, ``nlvr``, ``itm``, ``features``, ``video`` and
``visdial`` are the other heads. Every model and every operation has the name and the arguments that it has in
`blip_fast.models` and `blip_fast.ops`, whose docstrings explain them.
"""

from blip_fast.config import BlipConfig
from blip_fast.reference.adamw_momentum import adamw_momentum_step_
from blip_fast.reference.captioner import BlipCaptioner
from blip_fast.reference.contrastive import contrastive_loss
from blip_fast.reference.cross_attention import cross_attention, cross_attention_padded
from blip_fast.reference.decode_layer import decode_layer
from blip_fast.reference.dropout_add_layer_norm import dropout_add_layer_norm
from blip_fast.reference.enqueue import enqueue_
from blip_fast.reference.features import BlipFeatureExtractor
from blip_fast.reference.hard_negatives import draw_hard_negatives, hard_negative_weights, mine_hard_negatives
from blip_fast.reference.itm import BlipITM
from blip_fast.reference.linear import linear
from blip_fast.reference.linear_cross_entropy import linear_cross_entropy
from blip_fast.reference.momentum import momentum_update_
from blip_fast.reference.nlvr import BlipNLVR
from blip_fast.reference.packed_self_attention import packed_self_attention
from blip_fast.reference.pretrain import BlipPretrain
from blip_fast.reference.retrieval import BlipRetrieval, rerank_images, rerank_texts
from blip_fast.reference.row_groups import group_rows
from blip_fast.reference.video import BlipVideoQA, BlipVideoRetrieval
from blip_fast.reference.visdial import BlipVisDial
from blip_fast.reference.vqa import BlipVQA

__all__ = [
    "BlipCaptioner",
    "BlipConfig",
    "BlipFeatureExtractor",
    "BlipITM",
    "BlipNLVR",
    "BlipPretrain",
    "BlipRetrieval",
    "BlipVQA",
    "BlipVideoQA",
    "BlipVideoRetrieval",
    "BlipVisDial",
    "adamw_momentum_step_",
    "contrastive_loss",
    "cross_attention",
    "cross_attention_padded",
    "decode_layer",
    "draw_hard_negatives",
    "dropout_add_layer_norm",
    "enqueue_",
    "group_rows",
    "hard_negative_weights",
    "linear",
    "linear_cross_entropy",
    "mine_hard_negatives",
    "momentum_update_",
    "packed_self_attention",
    "rerank_images",
    "rerank_texts",
]
