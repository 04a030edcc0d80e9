"""Photographs from JPEG to training tensor, on one core: decoders, and crops resized by PIL or in 16-bit integers.

The photographs are the nine bundled ones, enlarged to the size of COCO's and to that of a camera's.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator

import cv2
import numpy as np
import torch
from PIL import Image
from torchvision import transforms
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import InterpolationMode, v2

from blip_fast.data.demo_pairs import demo_root
from blip_fast.data.pictures import decode_picture
from blip_fast.data.sampling import seeded
from blip_fast.data.transforms import IMAGE_MEAN, IMAGE_STD, PRETRAIN_SCALE, PixelMode, train_transform

from ..job import Aim, Case, Setting, Variant

PLACE = 90
COCO, CAMERA = (640, 480), (2048, 1536)
QUALITY = 92
# Fast pixels differ by 1 of 255 here and there; a photograph decoded at half its size is a little softer or sharper.
TOLERANCE = 0.1
Load = Callable[[bytes], torch.Tensor]


def cases(setting: Setting) -> Iterable[Case]:
    """Decoding, then pre-training's crops of 224 pixels; with ``--full`` the crops of 384 that fine-tuning takes, too."""
    if setting.device.type != "cpu":
        return
    yield _decoding(COCO)
    yield _cropping(COCO, 224)
    yield _cropping(CAMERA, 224)
    if not setting.quick:
        yield _cropping(COCO, 384)


def photographs(size: tuple[int, int]) -> list[bytes]:
    """The bundled photographs as JPEG files of a size."""
    files = []
    for path in sorted((demo_root() / "photos").glob("*.jpg")):
        buffer = io.BytesIO()
        Image.open(path).convert("RGB").resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=QUALITY)
        files.append(buffer.getvalue())
    return files


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Within the block torch and OpenCV work in the calling thread, as they do in a loader's worker."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


def _decoding(size: tuple[int, int]) -> Case:
    files = photographs(size)
    return Case(
        name=f"decode {size[0]} x {size[1]}",
        inputs=lambda seed: (files,),
        variants=[
            _variant("PIL", lambda file: _tensor(Image.open(io.BytesIO(file)).convert("RGB")), "baseline"),
            _variant("torchvision.io", _torchvision),
            _variant("OpenCV", _opencv),
            _variant("blip_fast", lambda file: _tensor(decode_picture(file, "")), "ours"),
        ],
        tolerance=0,
        bytes=_bytes(files, size[0] * size[1]),
        items=(len(files), "pictures"),
        input_sets=1,
    )


def _cropping(size: tuple[int, int], image_size: int) -> Case:
    files = photographs(size)
    return Case(
        name=f"{size[0]} x {size[1]} to a crop of {image_size}",
        inputs=lambda seed: (files,),
        variants=[
            _variant("published", _published(image_size), "baseline"),
            _variant("torchvision on tensors", _on_tensors(image_size)),
            _variant("blip_fast, published pixels", _ours(image_size, "published"), "ours"),
            _variant("blip_fast, fast pixels", _ours(image_size, "fast"), "ours"),
        ],
        tolerance=TOLERANCE,
        bytes=_bytes(files, image_size**2 * 4),
        items=(len(files), "pictures"),
        input_sets=1,
        aims=[Aim(1.5, over="published")],
    )


def _bytes(files: list[bytes], size_of_channel: int) -> int:
    """The files, read once, and the three channels of each picture, written once."""
    return sum(len(file) for file in files) + 3 * size_of_channel * len(files)


def _variant(name: str, load: Load, role: str = "peer") -> Variant:
    def run(files: list[bytes]) -> list[torch.Tensor]:
        with seeded(0):  # the same crops for all
            return [load(file) for file in files]

    return Variant(name, run, role=role, context=one_thread)  # type: ignore[arg-type]


def _published(image_size: int) -> Load:
    bicubic = InterpolationMode.BICUBIC
    crop = transforms.RandomResizedCrop(image_size, scale=PRETRAIN_SCALE, interpolation=bicubic)
    steps = [
        crop,
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(IMAGE_MEAN, IMAGE_STD),
    ]
    transform = transforms.Compose(steps)
    return lambda file: transform(Image.open(io.BytesIO(file)).convert("RGB"))


def _on_tensors(image_size: int) -> Load:
    bicubic = InterpolationMode.BICUBIC
    crop = v2.RandomResizedCrop(image_size, scale=PRETRAIN_SCALE, interpolation=bicubic, antialias=True)
    to_float = v2.ToDtype(torch.float32, scale=True)
    transform = v2.Compose([crop, v2.RandomHorizontalFlip(), to_float, v2.Normalize(IMAGE_MEAN, IMAGE_STD)])
    return lambda file: transform(_torchvision(file))


def _ours(image_size: int, pixels: PixelMode) -> Load:
    transform = train_transform(image_size, PRETRAIN_SCALE, augment=False, pixels=pixels)
    return lambda file: transform.finish(decode_picture(file, "", transform.decode))


def _torchvision(file: bytes) -> torch.Tensor:
    return decode_image(torch.frombuffer(bytearray(file), dtype=torch.uint8), mode=ImageReadMode.RGB)


def _opencv(file: bytes) -> torch.Tensor:
    pixels = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    return torch.from_numpy(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)).permute(2, 0, 1)


def _tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)
