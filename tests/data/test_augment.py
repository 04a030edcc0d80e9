from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from blip_fast.data.augment import (
    PUBLISHED_OPERATIONS,
    Pixels,
    RandomAugment,
    augment,
    auto_contrast,
    brightness,
    equalize,
    sharpness,
)


@pytest.fixture
def image() -> Pixels:
    return np.random.default_rng(0).integers(20, 200, (37, 53, 3), dtype=np.uint8)


def warp(image: Pixels, matrix: object) -> np.ndarray:
    size = (image.shape[1], image.shape[0])
    return cv2.warpAffine(image, np.asarray(matrix), size, flags=cv2.INTER_LINEAR, borderValue=(128, 128, 128))


@pytest.mark.parametrize("operation", ["Identity", "Brightness", "Sharpness"])
def test_no_operation_at_the_published_level_changes_a_pixel(image: Pixels, operation: str) -> None:
    assert np.array_equal(augment(image, operation, 5), image)


@pytest.mark.parametrize(
    ("operation", "sign", "matrix"),
    [
        ("ShearX", 1, np.float32([[1, 0.15, 0], [0, 1, 0]])),
        ("ShearY", 1, np.float32([[1, 0, 0], [0.15, 1, 0]])),
        ("ShearX", -1, np.float32([[1, -0.15, 0], [0, 1, 0]])),
        ("TranslateX", 1, np.float32([[1, 0, -5], [0, 1, 0]])),
        ("TranslateY", -1, np.float32([[1, 0, 0], [0, 1, 5]])),
        ("Rotate", 1, cv2.getRotationMatrix2D((53 / 2, 37 / 2), 15, 1)),
        ("Rotate", -1, cv2.getRotationMatrix2D((53 / 2, 37 / 2), -15, 1)),
    ],
)
def test_geometric_operations_are_opencvs(image: Pixels, operation: str, sign: int, matrix: np.ndarray) -> None:
    assert np.array_equal(augment(image, operation, 5, negative=sign < 0), warp(image, matrix))


def test_shifts_move_pixels_and_fill_with_grey(image: Pixels) -> None:
    left, down = augment(image, "TranslateX", 5), augment(image, "TranslateY", 5, negative=True)
    assert np.array_equal(left[:, :-5], image[:, 5:])
    assert (left[:, -5:] == 128).all()
    assert np.array_equal(down[5:], image[:-5])
    assert (down[:5] == 128).all()


def test_equalising_is_pils(image: Pixels) -> None:
    assert np.array_equal(equalize(image), np.asarray(ImageOps.equalize(Image.fromarray(image))))
    flat = np.full((30, 30, 3), 7, np.uint8)
    assert np.array_equal(equalize(flat), flat)
    few = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)  # too few pixels for a step
    assert np.array_equal(equalize(few), few)


def test_stretching_is_pils_where_a_channel_has_black(image: Pixels) -> None:
    image[3, 4] = 0
    for published in (True, False):
        assert np.array_equal(
            auto_contrast(image, published), np.asarray(ImageOps.autocontrast(Image.fromarray(image)))
        )
    flat = np.full((3, 3, 3), 7, np.uint8)
    assert np.array_equal(auto_contrast(flat), flat)


def test_published_stretching_negates_in_eight_bits(image: Pixels) -> None:
    image[3, 4, :2] = 0
    stretched = auto_contrast(image)
    low, high = image[..., 2].min(), image[..., 2].max()
    with np.errstate(over="ignore"):
        offset = np.negative(low) * (255 / (high - low))
    assert np.array_equal(
        stretched[..., 2], (image[..., 2] * (255 / (high - low)) + offset).clip(0, 255).astype(np.uint8)
    )
    assert (stretched[..., 2] == 255).all()
    sane = auto_contrast(image, published=False)
    assert np.array_equal(sane[..., :2], stretched[..., :2])
    assert (sane[..., 2].min(), sane[..., 2].max()) == (0, 255)


def test_brightness_multiplies() -> None:
    image = np.array([[[10, 100, 200]]], np.uint8)
    assert brightness(image, 1.9).tolist() == [[[19, 190, 255]]]
    assert brightness(image, 0.0).tolist() == [[[0, 0, 0]]]


def test_sharpness_blends_with_the_smoothed_picture() -> None:
    image = np.zeros((5, 5, 3), np.uint8)
    image[2, 2] = 130
    smooth, half = sharpness(image, 0.0), sharpness(image, 0.5)
    assert smooth[2, 2].tolist() == [50] * 3  # 5/13
    assert smooth[1, 1].tolist() == [10] * 3  # 1/13
    assert half[2, 2].tolist() == [90] * 3
    assert sharpness(image, 1.9)[2, 2].tolist() == [202] * 3
    assert sharpness(image, 1.9)[1, 1].tolist() == [0] * 3


def test_random_operations_follow_torchs_generator(image: Pixels) -> None:
    transform = RandomAugment()
    torch.manual_seed(1)
    first = [transform(image) for _ in range(40)]
    torch.manual_seed(1)
    assert all(np.array_equal(one, transform(Image.fromarray(image))) for one in first)
    unchanged = sum(np.array_equal(one, image) for one in first)
    # each of two operations is left out, or changes nothing, with probability 0.5 + 0.5 * 0.3
    assert 8 < unchanged < 26
    assert len({one.tobytes() for one in first}) > 8


def test_every_operation_comes_up_and_in_both_directions(image: Pixels) -> None:
    torch.manual_seed(0)
    seen = {RandomAugment(count=1)(image).tobytes() for _ in range(300)}
    for operation in PUBLISHED_OPERATIONS:
        for negative in (False, True):
            assert augment(image, operation, 5, negative).tobytes() in seen


def test_unknown_operations_and_levels_are_named(image: Pixels) -> None:
    with pytest.raises(ValueError, match=r"operations=\['Blur'\]; expected some of Identity"):
        RandomAugment(operations=["Blur"])
    with pytest.raises(ValueError, match="level=11"):
        RandomAugment(level=11)
    with pytest.raises(ValueError, match="operation='Blur'"):
        augment(image, "Blur", 5)
