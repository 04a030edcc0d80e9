"""The bundled drawings: 182 pairs to train on and 26 held-out pairs (sources and licences in ``demo/ATTRIBUTION.md``)."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from blip_fast.data.pretrain import PretrainData


def demo_root() -> Path:
    """Folder of the bundled pictures and their annotation files."""
    return Path(str(resources.files(__package__).joinpath("demo")))


def demo_pairs(split: str, transform: Callable[[Image.Image], torch.Tensor], **options: Any) -> PretrainData:
    """The bundled pairs of ``split`` ("train", "test", or "photos": nine photographs for smoke tests).

    ``options`` are further arguments of `PretrainData`.
    """
    if split not in ("train", "test", "photos"):
        raise ValueError(f"split={split!r} is none of 'train', 'test', 'photos'")
    root = demo_root()
    return PretrainData([root / f"{split}.json"], root, transform, on_broken="raise", keep_decoded=True, **options)
