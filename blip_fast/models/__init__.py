"""BLIP on the fused operations: the reference's classes, parameters and results, faster."""

from __future__ import annotations

from blip_fast.config import BlipConfig
from blip_fast.models.captioner import BlipCaptioner
from blip_fast.models.features import BlipFeatureExtractor
from blip_fast.models.itm import BlipITM
from blip_fast.models.nlvr import BlipNLVR
from blip_fast.models.pretrain import BlipPretrain
from blip_fast.models.retrieval import BlipRetrieval, rerank
from blip_fast.models.video import BlipVideoQA, BlipVideoRetrieval
from blip_fast.models.visdial import BlipVisDial
from blip_fast.models.vit_attention import set_vit_attention
from blip_fast.models.vqa import BlipVQA

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
    "rerank",
    "set_vit_attention",
]
