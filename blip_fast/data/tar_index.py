"""Where the samples of a webdataset shard lie in its tar file, so that any of them can be read without the others."""

from __future__ import annotations

import dataclasses
import os
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from blip_fast.checkpoints.files import write_atomically
from blip_fast.data.shard_samples import PICTURE_SUFFIXES, TEXT_SUFFIXES, DamagedShardError, group_files

INDEX_SUFFIX = ".index.npz"


@dataclasses.dataclass(frozen=True)
class TarIndex:
    """The N samples of a shard that have a picture and a text, and what is wrong with others.

    Attributes:
        places: (N, 4) int64: first byte and size of the picture, first byte and size of the text.
        is_json: (N,) bool: whether the text is a JSON object with the caption in it.
        keys: (N,) names of the samples.
        problems: a line for each sample that lacks something, and for a shard that is cut off.
    """

    places: NDArray[np.int64]
    is_json: NDArray[np.bool_]
    keys: NDArray[np.str_]
    problems: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys)


def tar_index(shard: Path) -> TarIndex:
    """The index of a shard. It is kept beside the shard, if the folder can be written to, and made anew when the shard changes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no tar file, or a compressed one, which can be read from the start only.
    """
    status = shard.stat()
    stamp = f"{status.st_size} {status.st_mtime_ns}"
    beside = shard.with_name(shard.name + INDEX_SUFFIX)
    index = _load(beside, stamp)
    if index is None:
        index = make_index(shard)
        if os.access(shard.parent, os.W_OK):
            write_atomically(beside, lambda path: _save(path, index, stamp))
    return index


def make_index(shard: Path) -> TarIndex:
    """Read the headers of a shard; see :func:`tar_index`."""
    places, is_json, keys = [], [], []
    problems: list[str] = []
    members = ((member.name, (member.offset_data, member.size)) for member in tar_members(shard))
    try:
        for key, files in group_files(members):
            picture = next((files[suffix] for suffix in PICTURE_SUFFIXES if suffix in files), None)
            suffix = next((suffix for suffix in TEXT_SUFFIXES if suffix in files), None)
            if picture is None or suffix is None:
                missing = "picture" if picture is None else "text"
                problems.append(f"{shard}, {key}: has no {missing}, only {', '.join(sorted(files))}")
                continue
            places.append((*picture, *files[suffix]))
            is_json.append(suffix == "json")
            keys.append(key)
    except DamagedShardError as error:
        if isinstance(error.__cause__, OSError):  # it may pass, and the index would stay
            raise error.__cause__ from None
        problems.append(f"{shard}: is damaged after {error.key or 'the start'}: {error}")
    table = np.asarray(places, np.int64).reshape(-1, 4)
    return TarIndex(table, np.asarray(is_json, np.bool_), np.asarray(keys, np.str_), tuple(problems))


def tar_members(shard: Path) -> Iterator[tarfile.TarInfo]:
    """The plain files that lie in a shard as a whole; links and other special entries are passed over.

    Raises ValueError where it is no uncompressed tar file, tarfile.ReadError where it turns out to be damaged.
    """
    size = shard.stat().st_size
    try:
        archive = tarfile.open(shard, "r:")  # noqa: SIM115  (closed below)
    except (tarfile.ReadError, OverflowError, ValueError) as error:
        raise ValueError(f"{shard} is no uncompressed tar file: {error}") from error
    with archive:
        for member in plain_members(archive):
            if member.offset_data + member.size > size:
                raise tarfile.ReadError(f"{member.name} ends beyond the end of the file")
            yield member


def plain_members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The plain files of an open archive, none of which is kept. tarfile.ReadError where it turns out to be damaged."""
    while (member := _next_member(archive)) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # it would keep all of them
        if member.isreg() and not member.issparse():
            yield member
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if any(archive.fileobj.read(tarfile.BLOCKSIZE)):  # tarfile takes a damaged header for the end
        raise tarfile.ReadError(f"no header at byte {archive.offset}")


def _next_member(archive: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The member at the next header; tarfile.ReadError where the header cannot be true."""
    try:
        member = archive.next()
    except (OverflowError, ValueError) as error:  # sizes and maps that tarfile takes as they stand
        raise tarfile.ReadError(f"the header at byte {archive.offset} is damaged: {error}") from error
    if member is not None and member.size < 0:  # the next header would stand before this one, and so on for ever
        raise tarfile.ReadError(f"{member.name} has {member.size} bytes")
    return member


def _save(path: Path, index: TarIndex, stamp: str) -> None:
    with path.open("wb") as file:
        np.savez(
            file,
            places=index.places,
            is_json=index.is_json,
            keys=index.keys,
            problems=np.asarray(index.problems, np.str_),
            stamp=np.asarray(stamp),
        )


def _load(path: Path, stamp: str) -> TarIndex | None:
    """The index in a file; None where there is none, or that of another state of the shard, or none that can be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["stamp"]) != stamp:
                return None
            problems = tuple(str(line) for line in file["problems"])
            return TarIndex(file["places"], file["is_json"], file["keys"], problems)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
