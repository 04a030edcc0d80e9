"""Checkpoints in and out: published ``.pth`` files, safetensors, Hugging Face folders, timm and BERT weights."""

from __future__ import annotations

from blip_fast.checkpoints.initial import BERT_BASE, VIT_BASE, VIT_LARGE, load_bert, load_vit
from blip_fast.checkpoints.loading import LoadReport, load_state
from blip_fast.checkpoints.pos_embed import interpolate_pos_embed
from blip_fast.checkpoints.pretrained import PretrainedModel, load_checkpoint, read_checkpoint

__all__ = [
    "BERT_BASE",
    "VIT_BASE",
    "VIT_LARGE",
    "LoadReport",
    "PretrainedModel",
    "interpolate_pos_embed",
    "load_bert",
    "load_checkpoint",
    "load_state",
    "load_vit",
    "read_checkpoint",
]
