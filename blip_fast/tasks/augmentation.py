"""Training pictures as the settings want them."""

from __future__ import annotations

from torchvision.transforms import v2

from blip_fast.data.transforms import FINETUNE_SCALE, train_transform
from blip_fast.training.settings import Decay


def training_transform(settings: Decay, published_scale: tuple[float, float] = FINETUNE_SCALE) -> v2.Compose:
    """The published transform, as far as ``crop_share``, ``flip`` and ``rand_augment`` do not say otherwise."""
    scale = published_scale if settings.crop_share is None else (settings.crop_share, 1.0)
    return train_transform(settings.image_size, scale, settings.flip, settings.rand_augment)
