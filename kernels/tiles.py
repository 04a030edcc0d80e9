"""Tile sizes of the attention kernels: a stored table per architecture where one was measured, else a rule.

``python -m blip_fast.benchmarks.tune`` measures and writes the tables, ``tiles_sm90.json`` and so on beside this file. Nothing
is timed when a kernel is called, so that runs repeat and ranks agree.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Tile:
    """Launch parameters of an attention kernel: queries and keys of a block, warps, stages of its pipeline."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


@dataclasses.dataclass(frozen=True)
class Job:
    """What a tile is chosen for.

    Attributes:
        kernel: ``forward``, ``grad_query``, ``grad_key_value`` (cross-attention), ``self_forward`` or ``self_backward``.
        tile_rows: query rows that belong together: of an image, or of a text.
        head_size: rounded up to a power of two.
        itemsize: bytes of an element.
    """

    kernel: str
    tile_rows: int
    head_size: int
    itemsize: int


KERNELS = ("forward", "grad_query", "grad_key_value", "self_forward", "self_backward")


@functools.cache
def tile_for(kernel: str, tile_rows: int, head_size: int, itemsize: int, device: torch.device) -> Tile:
    """The stored tile for this GPU, or else the one by rule. ``head_size`` is rounded up to a power of two."""
    job = Job(kernel, tile_rows, head_size, itemsize)
    return stored_tiles(arch_of(device)).get(job) or tile_by_rule(job)


def arch_of(device: torch.device) -> int:
    """Of the GPU: 90 for compute capability 9.0. In the interpreter, that of an H100."""
    major, minor = torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)
    return 10 * major + minor


@functools.cache
def stored_tiles(arch: int) -> dict[Job, Tile]:
    """What was measured to be fastest on ``arch``; empty where nothing was."""
    path = table_path(arch)
    return parse_table(json.loads(path.read_text()), arch) if path.exists() else {}


def table_path(arch: int, folder: Path = FOLDER) -> Path:
    """Where the table of ``arch`` stands."""
    return folder / f"tiles_sm{arch}.json"


def parse_table(document: dict[str, Any], arch: int) -> dict[Job, Tile]:
    """The tiles of a table.

    Raises:
        ValueError: it is not a table of ``arch``, or a kernel could not be launched with one of its tiles.
    """
    if document.get("arch") != arch:
        raise ValueError(f"the table is of arch {document.get('arch')!r}; expected {arch}")
    tiles = {}
    for entry in document["tiles"]:
        job, tile = (kind(**{f.name: entry[f.name] for f in dataclasses.fields(kind)}) for kind in (Job, Tile))
        if tile not in candidates(job):
            raise ValueError(f"the table of arch {arch} gives {job} the tile {tile}; expected one that it can run with")
        tiles[job] = tile
    return tiles


def table_document(arch: int, tiles: dict[Job, Tile], **measured_with: str) -> dict[str, Any]:
    """The table as JSON holds it: one flat entry a job, and what it was measured with."""
    entries = [dataclasses.asdict(job) | dataclasses.asdict(tile) for job, tile in tiles.items()]
    entries.sort(key=lambda entry: [str(entry[field.name]) for field in dataclasses.fields(Job)])
    return {"arch": arch, **measured_with, "tiles": entries}


def candidates(job: Job) -> list[Tile]:
    """All tiles that a job could be launched with; which of them fit on a GPU without spilling, compilation tells."""
    if job.kernel not in KERNELS:
        raise ValueError(f"kernel is '{job.kernel}'; expected one of {', '.join(KERNELS)}")
    queries: Iterable[int] = (16, 32, 64, 128)
    keys: tuple[int, ...] = (16, 32, 64, 128)
    if job.kernel in ("forward", "grad_query"):  # a tile of rows is cut into whole blocks
        queries = [size for size in queries if job.tile_rows % size == 0]
    tiles = [Tile(*sizes) for sizes in itertools.product(queries, keys, (4, 8), (1, 2, 3))]
    return [tile for tile in tiles if job.kernel != "self_backward" or tile.block_m == tile.block_n]


def tile_by_rule(job: Job) -> Tile:
    """The largest tile of which nothing spills to memory, as ahead-of-time compilation shows.

    16-bit types: 64 keys, which is what one set of Philox words covers. fp32: products without tensor cores take many more
    registers, hence small tiles.
    """
    wide = job.head_size > 64
    if job.kernel in ("self_forward", "self_backward"):
        return _self_attention_by_rule(job, wide)
    if job.itemsize == 4:
        if job.kernel == "forward":
            return Tile(16, 32, 8, 1) if wide else Tile(16, 64, 8, 2)
        if job.kernel == "grad_query":
            return Tile(16, 16, 4, 2) if wide else Tile(16, 64, 8, 1)
        return Tile(16, 64, 8, 2 if wide else 1)
    if job.kernel == "forward":
        rows = min(job.tile_rows, 32 if wide else 128)
        return Tile(rows, 64, 8 if rows == 128 else 4, 3 if rows == 16 else 2)
    if job.kernel == "grad_query":
        return Tile(min(job.tile_rows, 32), 64, 4, 2)
    return Tile(32, 64, 8 if wide else 4, 2)


def _self_attention_by_rule(job: Job, wide: bool) -> Tile:
    """A whole text a tile, where it fits; backward holds twice as much."""
    largest = 64 if job.kernel == "self_forward" else 32
    if job.itemsize == 4:
        return Tile(16, 16, 8, 1 if wide or job.kernel == "self_forward" else 2)
    size = min(job.tile_rows, largest)
    return Tile(size, size, 8 if wide and size == largest else 4, 2)
