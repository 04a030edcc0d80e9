"""Pictures in webdataset shards: where in the file each one lies. Nothing is unpacked, whatever the names in it say."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Collection, Iterator
from typing import NamedTuple


class ShardPicture(NamedTuple):
    """A picture at ``offset`` of a shard, ``size`` bytes long, or the problem that was found in its place."""

    name: str
    offset: int = 0
    size: int = 0
    problem: str | None = None


def is_shard(path: str) -> bool:
    """Whether a file is a shard, by its name."""
    return path.lower().endswith(".tar")


def pictures_in(path: str, suffixes: Collection[str]) -> Iterator[ShardPicture]:
    """The members of a shard that end in one of ``suffixes``, in their order, named "shard.tar::member".

    A shard that is damaged gives what stands before the damage, and then one problem.
    """
    try:
        with tarfile.open(path, "r:") as shard:
            while (member := shard.next()) is not None:
                shard.members = []  # type: ignore[attr-defined]  # tarfile keeps all otherwise
                if os.path.splitext(member.name)[1].lower() not in suffixes:
                    continue
                name = f"{path}::{member.name}"
                if member.isreg() and not member.issparse():
                    yield ShardPicture(name, member.offset_data, member.size)
                else:
                    yield ShardPicture(name, problem="is a link or another special entry of the shard, no file")
            if has_more(shard):
                yield ShardPicture(path, problem=f"the shard is damaged behind byte {shard.offset}")
    except (tarfile.TarError, OSError, ValueError) as error:
        yield ShardPicture(path, problem=f"the shard cannot be read: {error}")


def has_more(shard: tarfile.TarFile) -> bool:
    """Whether anything but zeros follows the last member: tarfile takes a damaged header for the end."""
    assert shard.fileobj is not None
    shard.fileobj.seek(shard.offset)
    return any(shard.fileobj.read(tarfile.BLOCKSIZE))
