"""Transforms from settings."""

from __future__ import annotations

from torchvision.transforms import v2

from blip_fast.data.augment import RandomAugment
from blip_fast.data.transforms import PRETRAIN_SCALE, PictureTransform, fast_resize
from blip_fast.tasks.pictures import evaluation_pictures, training_pictures
from blip_fast.training.settings import CaptionSettings


def kinds(transform: PictureTransform) -> set[type]:
    return {type(part) for part in transform.steps}


def test_published_unless_told_otherwise() -> None:
    published = training_pictures(CaptionSettings())
    assert kinds(published) >= {v2.RandomResizedCrop, v2.RandomHorizontalFlip, RandomAugment}
    assert published.steps[0].scale == (0.5, 1.0)
    assert training_pictures(CaptionSettings(), PRETRAIN_SCALE).steps[0].scale == (0.2, 1.0)
    gentle = training_pictures(CaptionSettings(crop_share=0.7, flip=False, rand_augment=False), PRETRAIN_SCALE)
    assert not kinds(gentle) & {v2.RandomHorizontalFlip, RandomAugment}
    assert gentle.steps[0].scale == (0.7, 1.0)


def test_fast_pixels_where_wanted() -> None:
    for make in (training_pictures, evaluation_pictures):
        for pixels in ("published", "fast"):
            first = make(CaptionSettings(pixels=pixels)).steps[0]
            assert (getattr(first, "func", None) is fast_resize) == (pixels == "fast")
