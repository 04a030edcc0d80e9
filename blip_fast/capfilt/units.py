"""Units of work: a webdataset shard, or some consecutive entries of a JSON list."""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import braceexpand

from blip_fast.capfilt.json_list import read_entries

SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")


@dataclasses.dataclass(frozen=True)
class Unit:
    """One unit of work, done as a whole or not at all.

    Attributes:
        index: its number among all units of the run.
        source: absolute path of the shard or list.
        size: bytes of that file, by which a changed file is noticed.
        start: byte at which the first entry begins; 0 for a shard.
        entries: how many entries of a list belong to the unit; None for a shard.
    """

    index: int
    source: str
    size: int
    start: int = 0
    entries: int | None = None

    @property
    def name(self) -> str:
        """Name of the unit's files, without suffix."""
        return f"{self.index:06d}"

    @property
    def is_shard(self) -> bool:
        """Whether the pictures lie in the source itself."""
        return self.entries is None

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def list_units(sources: Sequence[str | os.PathLike[str]], unit_size: int) -> list[Unit]:
    """All units of the sources, in order.

    Args:
        sources: JSON lists and shards; also folders of shards, glob patterns and braces ("web-{000..127}.tar").
        unit_size: entries of a list per unit.

    Raises FileNotFoundError for a source that is not there, ValueError for one that is neither.
    """
    units: list[Unit] = []
    for path in (path for source in sources for path in expand(source)):
        size = path.stat().st_size
        if path.name.endswith(SHARD_SUFFIXES):
            units.append(Unit(len(units), str(path), size))
        elif path.suffix == ".json":
            for start, entries in _slices(path, unit_size):
                units.append(Unit(len(units), str(path), size, start, entries))
        else:
            raise ValueError(f"{path} is neither a JSON list (.json) nor a shard ({', '.join(SHARD_SUFFIXES)})")
    return units


def expand(source: str | os.PathLike[str]) -> list[Path]:
    """The absolute paths of the files that a source names."""
    found: list[Path] = []
    name = os.fspath(source)
    for pattern in [name] if os.path.exists(name) else braceexpand.braceexpand(name):
        if os.path.isdir(pattern):
            matches = sorted(str(path) for path in Path(pattern).iterdir() if path.name.endswith(SHARD_SUFFIXES))
        else:
            matches = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern))
        if not matches:
            raise FileNotFoundError(f"images={name!r}: there is no {pattern!r}, or no shard in it")
        found += [Path(os.path.abspath(match)) for match in matches]
    return found


def _slices(path: Path, unit_size: int) -> list[tuple[int, int]]:
    """(first byte, number of entries) of each unit of a list; the whole list is parsed, and none of it kept."""
    slices: list[tuple[int, int]] = []
    start, count = 0, 0
    for place, _ in read_entries(path):
        if count == unit_size:
            slices.append((start, count))
            count = 0
        start = start if count else place
        count += 1
    return [*slices, (start, count)] if count else slices
