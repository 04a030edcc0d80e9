"""A safetensors file that grows row by row: what does not fit into memory fits in it.

The safetensors library writes tensors that are complete in memory. Its format begins with the sizes, which a run knows at
its end: rows go into a nameless file first.
"""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from blip_fast.checkpoints.files import write_atomically
from blip_fast.inference.features import FeatureRows

_DTYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.uint8: "U8",
}


def write_features(path: Path, name: str, parts: Iterable[FeatureRows], metadata: dict[str, str]) -> int:
    """Write parts as they come; ``path`` is complete or unchanged at any moment. Returns the number of rows.

    The file holds the tensor ``name`` (N, ...), where parts have them "lengths" (N,) int64, and "ids", the bytes of a JSON
    list of N strings; ``metadata`` are the file's. Raises ValueError where there is no row, FileExistsError where ``path``
    is a folder or a device.
    """
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path} is no regular file; expected a new file, or one to replace")
    path.parent.mkdir(parents=True, exist_ok=True)
    ids: list[str] = []
    lengths: list[Tensor] = []
    row: Tensor | None = None
    with tempfile.TemporaryFile(dir=path.parent) as rows:
        for part in parts:
            if part.ids:
                row = part.features[0]
                rows.write(_bytes(part.features))
                ids += part.ids
                lengths += [] if part.lengths is None else [part.lengths]
        if row is None:
            raise ValueError(f"no features to write to {path}: none of the inputs could be read")
        tensors = [(name, row.dtype, (len(ids), *row.shape), row.nbytes * len(ids))]
        tail = b"" if not lengths else _bytes(torch.cat(lengths))
        tensors += [("lengths", torch.int64, (len(ids),), len(tail))] if lengths else []
        # A tensor and no metadata: the safetensors library opens no file with more than 100 MB of these.
        names = json.dumps(ids).encode()
        tensors += [("ids", torch.uint8, (len(names),), len(names))]
        header = _header(tensors, metadata)
        write_atomically(path, lambda part: _assemble(part, header, rows, tail + names))
    return len(ids)


def _assemble(path: Path, header: bytes, rows: IO[bytes], tail: bytes) -> None:
    rows.seek(0)
    with path.open("wb") as file:
        file.write(header)
        shutil.copyfileobj(rows, file, 2**20)
        file.write(tail)


def _header(tensors: list[tuple[str, torch.dtype, tuple[int, ...], int]], metadata: dict[str, str]) -> bytes:
    """Length and JSON of the header: types, shapes and places of tensors one behind the other."""
    content: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, dtype, shape, size in tensors:
        content[name] = {"dtype": _DTYPES[dtype], "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()
