"""Transforms from settings."""

from __future__ import annotations

from torchvision.transforms import v2

from blip_fast.data.augment import RandomAugment
from blip_fast.data.transforms import PRETRAIN_SCALE
from blip_fast.tasks.pictures import evaluation_pictures, training_pictures
from blip_fast.training.settings import CaptionSettings


def kinds(transform: v2.Compose) -> set[type]:
    return {type(part) for part in transform.transforms}


def test_published_unless_told_otherwise() -> None:
    published = training_pictures(CaptionSettings())
    assert kinds(published) >= {v2.RandomResizedCrop, v2.RandomHorizontalFlip, RandomAugment}
    assert published.transforms[0].scale == (0.5, 1.0)
    assert training_pictures(CaptionSettings(), PRETRAIN_SCALE).transforms[0].scale == (0.2, 1.0)
    gentle = training_pictures(CaptionSettings(crop_share=0.7, flip=False, rand_augment=False), PRETRAIN_SCALE)
    assert not kinds(gentle) & {v2.RandomHorizontalFlip, RandomAugment}
    assert gentle.transforms[0].scale == (0.7, 1.0)


def test_fast_pixels_where_wanted() -> None:
    for make in (training_pictures, evaluation_pictures):
        assert make(CaptionSettings()).smallest_side is None
        assert make(CaptionSettings(pixels="fast")).smallest_side >= 384
