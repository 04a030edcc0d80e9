"""Image transforms of the published BLIP: PIL picture in, normalised float32 (3, S, S) tensor out."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from blip_fast.data.augment import RandomAugment

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
PRETRAIN_SCALE = (0.2, 1.0)  # share of a picture's area in a training crop
FINETUNE_SCALE = (0.5, 1.0)


def train_transform(
    image_size: int, scale: tuple[float, float] = FINETUNE_SCALE, flip: bool = True, augment: bool = True
) -> v2.Compose:
    """Random crop resized to (image_size, image_size) by bicubic interpolation, random flip and augmentations.

    ``scale`` bounds the share of the picture's area in the crop; published: (0.2, 1) in pre-training, (0.5, 1) else.
    ``flip=False`` is for captions that tell left from right. ``augment``: two operations of level 5, as published, see
    `blip_fast.data.augment`.
    """
    _check_size(image_size)
    crop = v2.RandomResizedCrop((image_size, image_size), scale=scale, interpolation=InterpolationMode.BICUBIC)
    flips = [v2.RandomHorizontalFlip()] if flip else []
    return v2.Compose([crop, *flips, *([RandomAugment()] if augment else []), to_normalised])


def eval_transform(image_size: int) -> v2.Compose:
    """The whole picture squashed to (image_size, image_size) by bicubic interpolation, and normalisation."""
    _check_size(image_size)
    # Resized as a PIL picture: its bicubic filter is the published one to the pixel.
    return v2.Compose([v2.Resize((image_size, image_size), interpolation=InterpolationMode.BICUBIC), to_normalised])


def to_normalised(picture: Image.Image | NDArray[np.uint8]) -> torch.Tensor:
    """An RGB picture -> (3, H, W) float32, channels of mean 0 and deviation 1 over natural images."""
    pixels = torch.from_numpy(np.array(picture, copy=True))
    return normalise(pixels.permute(2, 0, 1))


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels (..., 3, H, W) uint8 -> normalised float32, bit for bit as published."""
    values = pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    return values.sub_(_column(IMAGE_MEAN)).div_(_column(IMAGE_STD))


def _column(values: tuple[float, float, float]) -> torch.Tensor:
    return torch.tensor(values).view(3, 1, 1)


def _check_size(image_size: int) -> None:
    if image_size < 1:
        raise ValueError(f"image_size={image_size} must be at least 1 pixel")
