from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from blip_fast.data.augment import RandomAugment
from blip_fast.data.demo_pairs import demo_root
from blip_fast.data.pictures import to_rgb
from blip_fast.data.transforms import (
    IMAGE_MEAN,
    IMAGE_STD,
    PRETRAIN_SCALE,
    decode_part,
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
        difference = np.abs(fast_resize(smooth, size).astype(int) - published)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.05


def test_fast_training_makes_the_same_choices(picture: Image.Image) -> None:
    exact, fast = train_transform(24), train_transform(24, pixels="fast")
    for seed in range(12):
        torch.manual_seed(seed)
        expected = exact(picture)
        torch.manual_seed(seed)
        different = (fast(picture) - expected).abs() > 1.01 / 255 / min(IMAGE_STD)
        assert different.double().mean() < 0.03  # Equalize may turn a difference of one into a larger one


def test_fast_pixels_of_a_photograph_decoded_at_reduced_size_are_close() -> None:
    file = demo_root() / "photos" / "chelsea.jpg"
    for seed in range(6):
        images = []
        for mode in ("published", "fast"):
            transform = train_transform(48, PRETRAIN_SCALE, augment=False, pixels=mode)
            torch.manual_seed(seed)
            with Image.open(file) as opened:
                images.append(transform(opened))
        assert (images[0] - images[1]).norm() < 0.15 * images[0].norm()


@pytest.mark.parametrize(
    ("image_size", "box", "size"),
    [
        (24, None, (50, 38)),  # an eighth, rounded up
        (100, None, (200, 150)),
        (151, None, (400, 300)),
        (50, (100, 100, 300, 220), (100, 60)),
        (61, (100, 100, 300, 220), (200, 120)),
    ],
)
def test_jpegs_are_decoded_as_small_as_the_crop_allows(
    picture: Image.Image, image_size: int, box: tuple[int, int, int, int] | None, size: tuple[int, int]
) -> None:
    buffer = io.BytesIO()
    picture.resize((400, 300)).save(buffer, "JPEG")
    assert decode_part(Image.open(buffer), image_size, box).size == size
    assert decode_part(picture, 1).size == picture.size  # what is decoded already stays as it is
    assert to_rgb(Image.open(buffer)).size == (400, 300)


def test_unknown_pixels_are_named() -> None:
    with pytest.raises(ValueError, match="pixels='quick' is none of"):
        eval_transform(8, pixels="quick")  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [train_transform, eval_transform])
def test_image_size_must_be_positive(make: object) -> None:
    with pytest.raises(ValueError, match="image_size=0"):
        make(0)  # type: ignore[operator]
