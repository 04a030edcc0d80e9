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
from blip_fast.data.pictures import Decode, to_rgb

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
PRETRAIN_SCALE = (0.2, 1.0)  # share of a picture's area in a training crop
FINETUNE_SCALE = (0.5, 1.0)
_RATIO = (3 / 4, 4 / 3)  # of a crop's sides
PixelMode = Literal["published", "fast"]


class PictureTransform:
    """A PIL picture -> tensor (3, S, S), in two parts.

    ``decode`` takes a picture as it was opened, or decoded, and gives an RGB picture; it may take a part of it, and decode it
    at reduced size. ``finish`` does the rest. Calling the transform does both.
    """

    def __init__(self, decode: Decode, finish: Sequence[Callable[[Any], Any]]) -> None:
        self.decode = decode
        self.steps = list(finish)

    def __call__(self, picture: Image.Image) -> torch.Tensor:
        return self.finish(self.decode(picture))

    def finish(self, picture: Image.Image) -> torch.Tensor:
        """What comes after decoding."""
        result: Any = picture
        for step in self.steps:
            result = step(result)
        return result


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
        pixels: "published" resizes as PIL does; "fast" makes the same choices, but resizes in 16-bit integers, which is off by
            1 of 255 here and there, and decodes a JPEG at a half, a quarter or an eighth of its size where the crop is large
            enough for that.
    """
    _check(image_size, pixels)
    augmentations = [RandomAugment()] if augment else []
    if pixels == "fast":
        flips = [flip_at_random] if flip else []
        resize = functools.partial(fast_resize, image_size=image_size)
        return PictureTransform(FastCrop(image_size, scale), [resize, *flips, *augmentations, to_normalised])
    crop = v2.RandomResizedCrop((image_size, image_size), scale, interpolation=InterpolationMode.BICUBIC)
    flips = [v2.RandomHorizontalFlip()] if flip else []
    return PictureTransform(to_rgb, [crop, *flips, *augmentations, to_normalised])


def eval_transform(image_size: int, pixels: PixelMode = "published") -> PictureTransform:
    """The whole picture squashed to (image_size, image_size) by bicubic interpolation, and normalisation.

    ``pixels`` is that of :func:`train_transform`.
    """
    _check(image_size, pixels)
    if pixels == "fast":
        resize = functools.partial(fast_resize, image_size=image_size)
        return PictureTransform(functools.partial(decode_part, image_size=image_size), [resize, to_normalised])
    # Resized as a PIL picture: its bicubic filter is the published one to the pixel.
    squash = v2.Resize((image_size, image_size), interpolation=InterpolationMode.BICUBIC)
    return PictureTransform(to_rgb, [squash, to_normalised])


class FastCrop:
    """Decodes the part of a picture that torchvision's RandomResizedCrop would choose with the same random numbers."""

    def __init__(self, image_size: int, scale: tuple[float, float]) -> None:
        self.image_size, self.scale = image_size, scale

    def __call__(self, picture: Image.Image) -> Image.Image:
        top, left, height, width = RandomResizedCrop.get_params(picture, list(self.scale), list(_RATIO))
        return decode_part(picture, self.image_size, (left, top, left + width, top + height))


def decode_part(picture: Image.Image, image_size: int, box: tuple[int, int, int, int] | None = None) -> Image.Image:
    """The part ``box`` (left, top, right, bottom) of an opened picture; None: all of it.

    A JPEG is decoded at a half, a quarter or an eighth of its size as long as the part keeps ``image_size`` pixels a side.
    """
    width, height = picture.size
    left, top, right, bottom = box or (0, 0, width, height)
    reduction = max(min(right - left, bottom - top) // image_size, 1)
    picture.draft(None, (math.ceil(width / reduction), math.ceil(height / reduction)))  # nothing but JPEGs heeds it
    across, down = picture.width / width, picture.height / height
    decoded = to_rgb(picture)
    if box is None:
        return decoded
    return decoded.crop((round(left * across), round(top * down), round(right * across), round(bottom * down)))


def fast_resize(picture: Image.Image, image_size: int) -> NDArray[np.uint8]:
    """PIL's bicubic resize in vector instructions: pixels (image_size, image_size, 3), off by at most 1 of 255."""
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    resized = F.interpolate(pixels, (image_size, image_size), mode="bicubic", antialias=True)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


def flip_at_random(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pixels (H, W, 3), left and right exchanged with probability 1/2, by torchvision's draw."""
    return np.ascontiguousarray(pixels[:, ::-1]) if torch.rand(1) < 0.5 else pixels


def to_normalised(picture: Image.Image | NDArray[np.uint8]) -> torch.Tensor:
    """An RGB picture -> (3, H, W) float32, channels of mean 0 and deviation 1 over natural images."""
    pixels = torch.from_numpy(np.array(picture, copy=True))
    return normalise(pixels.permute(2, 0, 1))


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels (..., 3, H, W) uint8 -> normalised float32, bit for bit as published."""
    values = pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    mean, deviation = (torch.tensor(three, device=pixels.device).view(3, 1, 1) for three in (IMAGE_MEAN, IMAGE_STD))
    return values.sub_(mean).div_(deviation)


def _check(image_size: int, pixels: str) -> None:
    if image_size < 1:
        raise ValueError(f"image_size={image_size} must be at least 1 pixel")
    if pixels not in ("published", "fast"):
        raise ValueError(f"pixels={pixels!r} is none of 'published', 'fast'")
