from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from blip_fast.data.augment import RandomAugment
from blip_fast.data.pictures import read_picture
from blip_fast.data.roots import Root
from blip_fast.data.transforms import (
    IMAGE_MEAN,
    IMAGE_STD,
    PRETRAIN_SCALE,
    eval_transform,
    fast_resize,
    normalise,
    train_transform,
)


@pytest.fixture
def picture() -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return Image.fromarray(values)


def denormalise(image: torch.Tensor) -> torch.Tensor:
    return image * torch.tensor(IMAGE_STD)[:, None, None] + torch.tensor(IMAGE_MEAN)[:, None, None]


def test_evaluation_squashes_the_whole_picture_by_pils_bicubic_filter(picture: Image.Image) -> None:
    image = eval_transform(24)(picture)
    expected = np.asarray(picture.resize((24, 24), Image.Resampling.BICUBIC)).transpose(2, 0, 1) / 255
    assert image.dtype == torch.float32
    torch.testing.assert_close(denormalise(image), torch.tensor(expected, dtype=torch.float32), atol=1e-6, rtol=0)


def test_training_crops_are_at_least_as_large_as_asked() -> None:
    # A picture whose pixels hold their own coordinates shows which part a crop took.
    rows, columns = np.meshgrid(np.arange(200), np.arange(200), indexing="ij")
    picture = Image.fromarray(np.stack([rows, columns, 0 * rows], axis=2).astype(np.uint8))
    torch.manual_seed(0)
    transform = train_transform(32, scale=(0.5, 1.0), flip=False, augment=False)
    areas = []
    for _ in range(50):
        pixels = denormalise(transform(picture)) * 255
        height, width = (float(pixels[axis].max() - pixels[axis].min()) for axis in (0, 1))
        areas.append((height + 200 / 32) * (width + 200 / 32) / 200**2)
        assert pixels[1, 0, 0] < pixels[1, 0, -1]  # not flipped
    assert 0.45 < min(areas) < 0.6
    assert max(areas) > 0.85


def test_training_flips_half_of_the_pictures() -> None:
    picture = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (64, 1, 3)))
    torch.manual_seed(0)
    transform = train_transform(16, augment=False)
    flipped = sum(bool((image := transform(picture))[0, 0, 0] > image[0, 0, -1]) for _ in range(100))
    assert 30 < flipped < 70


def published(*steps: object) -> transforms.Compose:
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(IMAGE_MEAN, IMAGE_STD)])


def test_evaluation_is_the_published_transform_bit_for_bit(picture: Image.Image) -> None:
    theirs = published(transforms.Resize((24, 24), interpolation=transforms.InterpolationMode.BICUBIC))
    assert torch.equal(eval_transform(24)(picture), theirs(picture))


def test_training_is_the_published_transform_bit_for_bit(picture: Image.Image) -> None:
    bicubic = transforms.InterpolationMode.BICUBIC
    theirs = published(
        transforms.RandomResizedCrop(24, scale=(0.2, 1.0), interpolation=bicubic),
        transforms.RandomHorizontalFlip(),
        RandomAugment(2, 5),
    )
    ours = train_transform(24, PRETRAIN_SCALE)
    for seed in range(12):
        torch.manual_seed(seed)
        expected = theirs(picture)
        torch.manual_seed(seed)
        assert torch.equal(ours(picture), expected)


def test_pixels_of_many_frames_are_normalised_alike() -> None:
    frames = torch.randint(256, (2, 5, 3, 4, 6), dtype=torch.uint8)
    expected = transforms.Normalize(IMAGE_MEAN, IMAGE_STD)(frames / 255)
    assert torch.equal(normalise(frames), expected)


def test_fast_pixels_are_off_by_one_at_most(picture: Image.Image) -> None:
    smooth = picture.resize((300, 200), Image.Resampling.BICUBIC)
    for size in (24, 150, 400):
        published = np.asarray(smooth.resize((size, size), Image.Resampling.BICUBIC)).astype(int)
        difference = np.abs(np.asarray(fast_resize(smooth, size)).astype(int) - published)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.05


def test_fast_training_makes_the_same_crops(picture: Image.Image) -> None:
    exact, fast = train_transform(24, augment=False), train_transform(24, augment=False, pixels="fast")
    for seed in range(8):
        torch.manual_seed(seed)
        expected = exact(picture)
        torch.manual_seed(seed)
        assert (fast(picture) - expected).abs().max() < 1.01 / 255 / min(IMAGE_STD)


def test_large_jpegs_are_decoded_smaller_only_for_fast_pixels(picture: Image.Image, tmp_path: Path) -> None:
    picture.resize((400, 300)).save(tmp_path / "p.jpg")

    def size(smallest_side: int | None) -> tuple[int, int]:
        return read_picture(Root(tmp_path), "p.jpg", smallest_side).size

    assert train_transform(24, PRETRAIN_SCALE).smallest_side is None
    assert size(None) == (400, 300)
    transform = train_transform(24, PRETRAIN_SCALE, pixels="fast")
    assert transform.smallest_side == 62  # 24 / sqrt(0.2 * 3 / 4)
    assert size(62) == (100, 75)
    assert size(151) == (400, 300)
    assert eval_transform(24, pixels="fast").smallest_side == 24


def test_unknown_pixels_are_named() -> None:
    with pytest.raises(ValueError, match="pixels='quick' is none of"):
        eval_transform(8, pixels="quick")  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [train_transform, eval_transform])
def test_image_size_must_be_positive(make: object) -> None:
    with pytest.raises(ValueError, match="image_size=0"):
        make(0)  # type: ignore[operator]
