"""Image transforms of the published BLIP: PIL picture in, normalised float32 (3, S, S) tensor out."""

from __future__ import annotations

import torch
from torchvision.transforms import InterpolationMode, v2

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


def train_transform(image_size: int, scale: tuple[float, float] = (0.5, 1.0), flip: bool = True) -> v2.Compose:
    """Random crop resized to (image_size, image_size) by bicubic interpolation, random flip, normalisation.

    ``scale`` bounds the share of the picture's area in the crop; published: (0.2, 1) in pre-training, (0.5, 1) else.
    ``flip=False`` is for captions that tell left from right.
    """
    _check_size(image_size)
    crop = v2.RandomResizedCrop((image_size, image_size), scale=scale, interpolation=InterpolationMode.BICUBIC)
    return v2.Compose([crop, *([v2.RandomHorizontalFlip()] if flip else []), *_to_normalised()])


def eval_transform(image_size: int) -> v2.Compose:
    """The whole picture squashed to (image_size, image_size) by bicubic interpolation, and normalisation."""
    _check_size(image_size)
    resize = v2.Resize((image_size, image_size), interpolation=InterpolationMode.BICUBIC)
    return v2.Compose([resize, *_to_normalised()])


def _to_normalised() -> list[torch.nn.Module]:
    # Resizing happens on the PIL picture before this: its bicubic filter is the published one to the pixel.
    return [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGE_MEAN, IMAGE_STD)]


def _check_size(image_size: int) -> None:
    if image_size < 1:
        raise ValueError(f"image_size={image_size} must be at least 1 pixel")
