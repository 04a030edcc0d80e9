"""The random augmentations that the published BLIP trains with, by OpenCV and to the pixel.

They follow RandAugment (arXiv 1909.13719): every operation has a strength on a scale of 0 to 10. Pictures are arrays
(H, W, 3) of uint8. What an operation does not change it may return as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

FILL = (128, 128, 128)  # of what a geometric operation brings into view
LARGEST_LEVEL = 10
_LARGEST_SHEAR = 0.3  # pixels per pixel
_LARGEST_SHIFT = 10.0  # pixels
_LARGEST_ANGLE = 30.0  # degrees


def auto_contrast(image: Pixels, published: bool = True) -> Pixels:
    """Stretch each channel so that its darkest value becomes 0 and its brightest 255; a channel of one value stays.

    The published code negates the darkest value in 8 bits: a channel in which no pixel is 0 becomes white all over.
    ``published=False`` stretches it, as PIL's ``ImageOps.autocontrast`` does.
    """

    def table(channel: Pixels) -> Pixels | None:
        low, high = int(channel.min()), int(channel.max())
        if high <= low:
            return None
        scale = 255 / (high - low)
        shift = -low % 256 if published else -low
        return _bytes(np.arange(256) * scale + shift * scale)

    return _by_channel(image, table)


def equalize(image: Pixels) -> Pixels:
    """Spread the values of each channel evenly, as PIL's ``ImageOps.equalize`` does (OpenCV's own differs)."""

    def table(channel: Pixels) -> Pixels | None:
        counts = cv2.calcHist([channel], [0], None, [256], [0, 256]).ravel().astype(np.int64)
        step = (channel.size - counts[counts.nonzero()[0][-1]]) // 255  # the brightest value's pixels do not count
        if step == 0:
            return None
        below = np.concatenate([[step // 2], counts[:-1]]).cumsum()
        return _bytes(below // step)

    return _by_channel(image, table)


def brightness(image: Pixels, factor: float) -> Pixels:
    """Multiply by ``factor``."""
    if factor == 1:
        return image
    return _look_up(image, _bytes(np.arange(256, dtype=np.float32) * np.float32(factor)))


def sharpness(image: Pixels, factor: float) -> Pixels:
    """Blend with a blurred copy: 0 is the copy, 1 the picture; beyond 1 is sharper. The outermost pixels stay."""
    if factor == 1:
        return image
    kernel = np.ones((3, 3), np.float32)
    kernel[1, 1] = 5
    blurred = np.asarray(cv2.filter2D(image, -1, kernel / 13), np.uint8)
    if factor == 0:
        return blurred
    inner = blurred.astype(np.float32)[1:-1, 1:-1]
    result = image.copy()
    mixed = inner + np.float32(factor) * (image[1:-1, 1:-1].astype(np.float32) - inner)
    result[1:-1, 1:-1] = _bytes(mixed)
    return result


def shear_x(image: Pixels, factor: float) -> Pixels:
    """Move row y to the right by ``factor * y`` pixels."""
    return _warp(image, [[1, factor, 0], [0, 1, 0]])


def shear_y(image: Pixels, factor: float) -> Pixels:
    """Move column x down by ``factor * x`` pixels."""
    return _warp(image, [[1, 0, 0], [factor, 1, 0]])


def translate_x(image: Pixels, pixels: float) -> Pixels:
    """Move the picture to the left by ``pixels``."""
    return _warp(image, [[1, 0, -pixels], [0, 1, 0]])


def translate_y(image: Pixels, pixels: float) -> Pixels:
    """Move the picture up by ``pixels``."""
    return _warp(image, [[1, 0, 0], [0, 1, -pixels]])


def rotate(image: Pixels, degrees: float) -> Pixels:
    """Turn counter-clockwise around the point (width / 2, height / 2)."""
    height, width = image.shape[:2]
    return _warp(image, np.asarray(cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1), np.float64))


# Geometric operations with their size at the largest level; they are as likely to go the other way.
_GEOMETRIC: dict[str, tuple[Callable[[Pixels, float], Pixels], float]] = {
    "ShearX": (shear_x, _LARGEST_SHEAR),
    "ShearY": (shear_y, _LARGEST_SHEAR),
    "TranslateX": (translate_x, _LARGEST_SHIFT),
    "TranslateY": (translate_y, _LARGEST_SHIFT),
    "Rotate": (rotate, _LARGEST_ANGLE),
}
_ENHANCING: dict[str, Callable[[Pixels, float], Pixels]] = {"Brightness": brightness, "Sharpness": sharpness}
PUBLISHED_OPERATIONS = (
    "Identity",
    "AutoContrast",
    "Brightness",
    "Sharpness",
    "Equalize",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
)


def augment(image: Pixels, operation: str, level: float, negative: bool = False, published: bool = True) -> Pixels:
    """Apply one operation of :data:`PUBLISHED_OPERATIONS` at a level of 0 to 10.

    At level 5 shears are of 0.15, shifts of 5 pixels, turns of 15 degrees; Brightness and Sharpness change nothing.
    ``published`` is that of :func:`auto_contrast`.
    """
    if operation in _GEOMETRIC:
        move, largest = _GEOMETRIC[operation]
        size = level / LARGEST_LEVEL * largest
        return move(image, -size if negative else size)
    if operation in _ENHANCING:
        return _ENHANCING[operation](image, level / LARGEST_LEVEL * 1.8 + 0.1)
    if operation == "AutoContrast":
        return auto_contrast(image, published)
    if operation == "Equalize":
        return equalize(image)
    if operation == "Identity":
        return image
    raise ValueError(f"operation={operation!r} is none of {', '.join(PUBLISHED_OPERATIONS)}")


class RandomAugment:
    """``count`` operations drawn with replacement, each applied with probability 1/2; published: 2 at level 5.

    Draws come from torch's CPU generator, as those of torchvision's transforms do. ``published`` is that of
    :func:`auto_contrast`.
    """

    def __init__(
        self,
        count: int = 2,
        level: float = 5,
        operations: Sequence[str] = PUBLISHED_OPERATIONS,
        published: bool = True,
    ) -> None:
        unknown = [name for name in operations if name not in PUBLISHED_OPERATIONS]
        if unknown or not operations:
            raise ValueError(f"operations={list(operations)}; expected some of {', '.join(PUBLISHED_OPERATIONS)}")
        if count < 0 or not 0 <= level <= LARGEST_LEVEL:
            raise ValueError(
                f"count={count} and level={level}; expected count >= 0 and a level of 0 to {LARGEST_LEVEL}"
            )
        self.count, self.level, self.operations = count, level, tuple(operations)
        self.published = published

    def __call__(self, image: Image.Image | Pixels) -> Pixels:
        """An RGB picture -> pixels (H, W, 3)."""
        pixels: Pixels = np.array(image)
        chosen = torch.randint(len(self.operations), (self.count,)).tolist()
        for operation, (applied, side) in zip(chosen, torch.rand(self.count, 2).tolist(), strict=True):
            if applied <= 0.5:
                pixels = augment(pixels, self.operations[operation], self.level, side > 0.5, self.published)
        return pixels

    def __repr__(self) -> str:
        return f"RandomAugment(count={self.count}, level={self.level})"


def _by_channel(image: Pixels, table: Callable[[Pixels], Pixels | None]) -> Pixels:
    """Look each channel up in a table made from it; None leaves it."""
    result = image.copy()
    for number in range(image.shape[2]):
        channel = np.ascontiguousarray(image[..., number])
        values = table(channel)
        if values is not None:
            result[..., number] = _look_up(channel, values)
    return result


def _look_up(image: Pixels, table: Pixels) -> Pixels:
    return np.asarray(cv2.LUT(image, table), np.uint8)


def _bytes(values: NDArray[Any]) -> Pixels:
    return values.clip(0, 255).astype(np.uint8)


def _warp(image: Pixels, matrix: Sequence[Sequence[float]] | NDArray[np.float64]) -> Pixels:
    # single precision for shears and shifts as published; a turn's matrix is in double precision
    transform = matrix if isinstance(matrix, np.ndarray) else np.asarray(matrix, np.float32)
    height, width = image.shape[:2]
    warped = cv2.warpAffine(image, transform, (width, height), borderValue=FILL, flags=cv2.INTER_LINEAR)
    return np.asarray(warped, np.uint8)
