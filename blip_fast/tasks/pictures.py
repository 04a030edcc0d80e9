"""Pictures as the settings want them."""

from __future__ import annotations

from blip_fast.data.transforms import FINETUNE_SCALE, PictureTransform, eval_transform, train_transform
from blip_fast.training.settings import Decay, RunSettings


def training_pictures(settings: Decay, published_scale: tuple[float, float] = FINETUNE_SCALE) -> PictureTransform:
    """The published transform, as far as ``crop_share``, ``flip``, ``rand_augment`` and ``pixels`` do not say otherwise."""
    scale = published_scale if settings.crop_share is None else (settings.crop_share, 1.0)
    return train_transform(settings.image_size, scale, settings.flip, settings.rand_augment, settings.pixels)


def evaluation_pictures(settings: RunSettings) -> PictureTransform:
    """The published transform, with the settings' ``pixels``."""
    return eval_transform(settings.image_size, settings.pixels)
