"""Pictures read, decoded and resized in worker processes, ahead of the model. A broken one is a sentence, not an error."""

from __future__ import annotations

import io
import itertools
import signal
import urllib.request
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import BinaryIO

import torch
from PIL import ExifTags, Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2

from blip_fast.data.pictures import MAX_BYTES, BrokenSampleError, check_file, failures_as_broken, opened
from blip_fast.data.transforms import normalise
from blip_fast.inference.inputs import Input, InputError, Inputs, is_address

REMOTE_TIMEOUT = 20.0  # seconds
# By the value of the orientation tag: what makes the picture upright.
_TURNS: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Picture:
    """A picture's pixels, (3, S, S) uint8, or the problem with it."""

    name: str
    pixels: Tensor | None = None
    problem: str | None = None


@dataclass(frozen=True)
class PictureBatch:
    """Names (B) and pixels (B, 3, S, S) uint8 of good pictures; name and problem of the others."""

    names: list[str]
    pixels: Tensor
    problems: list[tuple[str, str]]

    def pin_memory(self) -> PictureBatch:
        """The same batch in page-locked memory; data loaders ask for it."""
        return replace(self, pixels=self.pixels.pin_memory())


class PictureDataset(Dataset[Picture]):
    """Pictures by :class:`Input`, upright, whole and squashed to (S, S) by bicubic interpolation as published."""

    def __init__(self, image_size: int) -> None:
        size = (image_size, image_size)
        self.image_size = image_size
        self.transform = v2.Compose([v2.Resize(size, InterpolationMode.BICUBIC), v2.PILToTensor()])

    def __getitem__(self, item: Input) -> Picture:
        try:
            return Picture(item.name, self.transform(read_picture(item)))
        except BrokenSampleError as error:
            return Picture(item.name, problem=str(error))

    def collate(self, pictures: list[Picture]) -> PictureBatch:
        """One batch of pictures."""
        size = self.image_size
        good = [(picture.name, picture.pixels) for picture in pictures if picture.pixels is not None]
        pixels = (
            torch.stack([pixels for _, pixels in good]) if good else torch.empty(0, 3, size, size, dtype=torch.uint8)
        )
        problems = [(picture.name, picture.problem) for picture in pictures if picture.problem is not None]
        return PictureBatch([name for name, _ in good], pixels, problems)


def picture_batches(
    inputs: Iterable[Input], image_size: int, batch_size: int, workers: int, pin_memory: bool = False
) -> DataLoader[Picture]:
    """Batches in the order of the inputs, decoded by ``workers`` processes (0: in this one) some batches ahead.

    Pixels travel as uint8, a quarter of what normalised ones would take; :func:`normalised` follows on the device.
    """
    dataset = PictureDataset(image_size)
    return DataLoader(
        dataset,
        batch_size,
        sampler=inputs,  # any iterable of what the data set is indexed with
        num_workers=workers,
        collate_fn=dataset.collate,
        worker_init_fn=_ignore_interrupts if workers else None,
        pin_memory=pin_memory,
    )


def normalised(pixels: Tensor, weight: Tensor) -> Tensor:
    """Pixels (B, 3, S, S) uint8 -> what a model of such weights takes, in fp32 that of ``data.transforms.eval_transform``."""
    return normalise(pixels.to(weight.device, non_blocking=True)).to(weight.dtype)


def read_picture(item: Input) -> Image.Image:
    """The decoded RGB picture, turned as its camera says. Raises BrokenSampleError with the reason in one line."""
    if item.problem is not None:
        raise BrokenSampleError(item.problem)
    with failures_as_broken(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's remarks on metadata, and on sizes that are refused
        with open_input(item) as stream, opened(stream) as picture:
            return upright(picture)


def upright(picture: Image.Image) -> Image.Image:
    """The picture in RGB, turned as its camera says: PIL's ``exif_transpose``, which fails where it cannot write all tags."""
    picture.load()  # the tags may stand behind the pixels
    turn = _TURNS.get(picture.getexif().get(ExifTags.Base.Orientation))
    rgb = picture.convert("RGB")
    return rgb if turn is None else rgb.transpose(turn)


def one_picture(inputs: Inputs, image_size: int) -> Tensor:
    """Pixels (3, S, S) uint8 of the one picture that inputs name.

    Raises InputError where they name none or several, BrokenSampleError where the picture cannot be read.
    """
    found = list(itertools.islice(inputs, 2))
    if len(found) != 1:
        named = "several images" if found else "no image"
        raise InputError(f"{' '.join(inputs.arguments)!r} names {named}; expected one")
    picture = PictureDataset(image_size)[found[0]]
    if picture.pixels is None:
        raise BrokenSampleError(f"{picture.name}: {picture.problem}")
    return picture.pixels


def open_input(item: Input) -> BinaryIO:
    """The bytes of a picture. BrokenSampleError where there are none, too many, or where reading would never end."""
    if is_address(item.place):
        return _fetch(item.place)
    size = check_file(item.place, item.size)
    with open(item.place, "rb") as file:
        file.seek(item.offset)
        content = file.read(size)
    if len(content) < size:
        raise BrokenSampleError(f"ends after {len(content)} of {size} bytes")
    if not content:
        raise BrokenSampleError("is empty")
    return io.BytesIO(content)


def _fetch(address: str) -> BinaryIO:
    request = urllib.request.Request(address, headers={"User-Agent": "blip_fast"})
    with urllib.request.urlopen(request, timeout=REMOTE_TIMEOUT) as answer:
        content = answer.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise BrokenSampleError(f"has more than {MAX_BYTES} bytes")
    return io.BytesIO(content)


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C is the main process's business, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
