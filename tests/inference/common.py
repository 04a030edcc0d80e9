"""A small model that knows the words of the usual prompt, and pictures good and bad."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from blip_fast import models
from blip_fast.config import BlipConfig
from blip_fast.data.tokenizer import load_tokenizer, restrict_vocabulary

WORDS = ["a picture of a cat and two dogs", "is it red ? yes no blue", "how many"]
TOKENIZER = restrict_vocabulary(load_tokenizer(), WORDS)


def build(name: str, seed: int = 0, **overrides: Any) -> Any:
    """A small model of this class in eval mode whose outputs differ between pictures."""
    torch.manual_seed(seed)
    sizes = dict(text_layers=2, vit_depth=2, image_size=32, queue_size=8, vocab_size=len(TOKENIZER), embed_dim=16)
    model = getattr(models, name)(BlipConfig.tiny(**(sizes | overrides)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.tokenizer = TOKENIZER
    return model.eval()


def save(folder: Path, name: str, **overrides: Any) -> str:
    """A model in a folder; its path for ``--checkpoint``."""
    build(name, **overrides).save_pretrained(folder)
    return str(folder)


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (40, 30)) -> Path:
    """A picture of noise."""
    noise = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise.numpy()).save(path)
    return path


def pictures(folder: Path, count: int) -> list[Path]:
    """Some pictures 000.png, 001.png, ..."""
    return [picture(folder / f"{number:03}.png", number) for number in range(count)]


def bomb(path: Path, side: int = 10_000) -> Path:
    """A PNG of side x side pixels in a few kilobytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((side + 7) // 8 + 1) * side, 9)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    return path


def shard(path: Path, members: dict[str, bytes | tarfile.TarInfo]) -> Path:
    """A tar file of members, given as content or as special entries."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path
