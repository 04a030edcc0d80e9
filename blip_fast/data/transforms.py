"""Image transforms of the published BLIP: PIL picture in, normalised float32 (3, S, S) tensor out."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import InterpolationMode, RandomResizedCrop, v2

from blip_fast.data.augment import RandomAugment

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
PRETRAIN_SCALE = (0.2, 1.0)  # share of a picture's area in a training crop
FINETUNE_SCALE = (0.5, 1.0)
_RATIO = (3 / 4, 4 / 3)  # of a crop's sides
PixelMode = Literal["published", "fast"]


class PictureTransform(v2.Compose):
    """Steps that turn a PIL picture into a tensor, with a hint for its decoder.

    ``smallest_side``: JPEGs may be decoded at a half, a quarter or an eighth of their size, while no side falls under so
    many pixels. None: at their size.
    """

    def __init__(self, transforms: Sequence[Callable[[Any], Any]], smallest_side: int | None = None) -> None:
        super().__init__(transforms)
        self.smallest_side = smallest_side


def train_transform(
    image_size: int,
    scale: tuple[float, float] = FINETUNE_SCALE,
    flip: bool = True,
    augment: bool = True,
    pixels: PixelMode = "published",
) -> PictureTransform:
    """Random crop resized to (image_size, image_size) by bicubic interpolation, random flip and augmentations.

    Args:
        image_size: S, pixels.
        scale: bounds of the crop's share of the picture's area; published: (0.2, 1) in pre-training, (0.5, 1) else.
        flip: False for captions that tell left from right.
        augment: two operations of level 5, as published, see `blip_fast.data.augment`.
        pixels: "published" resizes as PIL does; "fast" does so in integers of 16 bits, where some values are off by 1 of 255,
            and decodes large JPEGs at reduced size where no crop is enlarged by that.
    """
    _check(image_size, pixels)
    crop: Callable[[Image.Image], Image.Image]
    if pixels == "published":
        crop = v2.RandomResizedCrop((image_size, image_size), scale, interpolation=InterpolationMode.BICUBIC)
    else:
        crop = FastRandomResizedCrop(image_size, scale)
    flips = [v2.RandomHorizontalFlip()] if flip else []
    # the narrowest crop has the smallest area and the largest ratio of sides
    smallest = math.ceil(image_size / math.sqrt(scale[0] * _RATIO[0])) if pixels == "fast" else None
    return PictureTransform([crop, *flips, *([RandomAugment()] if augment else []), to_normalised], smallest)


def eval_transform(image_size: int, pixels: PixelMode = "published") -> PictureTransform:
    """The whole picture squashed to (image_size, image_size) by bicubic interpolation, and normalisation.

    ``pixels`` is that of :func:`train_transform`.
    """
    _check(image_size, pixels)
    if pixels == "fast":
        return PictureTransform([functools.partial(fast_resize, image_size=image_size), to_normalised], image_size)
    # Resized as a PIL picture: its bicubic filter is the published one to the pixel.
    resize = v2.Resize((image_size, image_size), interpolation=InterpolationMode.BICUBIC)
    return PictureTransform([resize, to_normalised])


class FastRandomResizedCrop:
    """torchvision's RandomResizedCrop, the same crop from the same random numbers, resized by :func:`fast_resize`."""

    def __init__(self, image_size: int, scale: tuple[float, float]) -> None:
        self.image_size, self.scale = image_size, scale

    def __call__(self, picture: Image.Image) -> Image.Image:
        top, left, height, width = RandomResizedCrop.get_params(picture, list(self.scale), list(_RATIO))
        return fast_resize(picture.crop((left, top, left + width, top + height)), self.image_size)


def fast_resize(picture: Image.Image, image_size: int) -> Image.Image:
    """PIL's bicubic resize to (image_size, image_size) in vector instructions; values differ by at most 1 of 255."""
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    resized = F.interpolate(pixels, (image_size, image_size), mode="bicubic", antialias=True)
    return Image.fromarray(resized[0].permute(1, 2, 0).numpy())


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


def _check(image_size: int, pixels: str) -> None:
    if image_size < 1:
        raise ValueError(f"image_size={image_size} must be at least 1 pixel")
    if pixels not in ("published", "fast"):
        raise ValueError(f"pixels={pixels!r} is none of 'published', 'fast'")
