"""What to work on: pictures named as files, patterns, folders, lists, addresses, or inside of webdataset shards."""

from __future__ import annotations

import glob
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from blip_fast.data.tar_index import tar_members

STDIN = "-"
PICTURE_SUFFIXES = frozenset(
    (
        ".avif",
        ".bmp",
        ".gif",
        ".jfif",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    )
)
_MEMBER = re.compile(r"(.+?\.tar)::", re.IGNORECASE | re.DOTALL)


class InputError(ValueError):
    """An argument names nothing that can be worked on; the message is one sentence."""


@dataclass(frozen=True)
class Input:
    """One picture that is wanted.

    Attributes:
        name: what records call it: path or address, "shard.tar::member" in a shard.
        place: the file that holds it, or its address.
        offset, size: where it lies in that file, in bytes; None is the whole file.
        problem: why it cannot be read, where that shows before it is opened.
    """

    name: str
    place: str
    offset: int = 0
    size: int | None = None
    problem: str | None = None


class Inputs:
    """All pictures that arguments name, in their order; may be iterated again, and holds no list of them.

    Args:
        arguments: a picture; a folder, searched in depth for pictures and shards (names that begin with a dot are left
            out); a pattern such as ``"photos/*.jpg"``; a webdataset shard (.tar); an address (http, https); or "-".
        lines: what "-" stands for: one such argument a line, but no pattern.
        allow_remote: whether addresses may be fetched.

    Raises InputError for an argument that names nothing. A bad line is a problem of that line only.
    """

    def __init__(self, arguments: Sequence[str], lines: Iterable[str] = (), allow_remote: bool = False) -> None:
        if not arguments:
            raise InputError("no pictures are given; expected files, folders, patterns, shards, or '-' for a list")
        self.arguments, self.allow_remote = list(arguments), allow_remote
        self.lines = list(lines)
        for argument in arguments:
            if argument != STDIN:
                self.check(argument, patterns=True)

    def __iter__(self) -> Iterator[Input]:
        for argument in self.arguments:
            if argument != STDIN:
                yield from self.expand(argument)
                continue
            for line in filter(None, self.lines):
                try:
                    self.check(line, patterns=False)
                except InputError as error:
                    yield Input(line, line, problem=str(error))
                else:
                    yield from self.expand(line)

    def check(self, argument: str, patterns: bool) -> None:
        """InputError unless the argument names something."""
        if is_address(argument):
            if not self.allow_remote:
                raise InputError(refusal(argument))
        elif "\0" in argument or not (
            os.path.lexists(argument) or (patterns and any(glob.iglob(argument, recursive=True)))
        ):
            raise InputError(
                f"there is no {argument!r}; expected a picture, a folder, a pattern, a shard (.tar) or an address"
            )
        elif argument.endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")):
            raise InputError(f"{argument!r} is a compressed shard; expected .tar, which is read at any place")

    def expand(self, argument: str) -> Iterator[Input]:
        """The pictures behind an argument that passed :meth:`check`."""
        if is_address(argument):
            yield Input(argument, argument)
        elif not os.path.lexists(argument):
            found = sorted(glob.iglob(argument, recursive=True))
            if not found:
                yield Input(argument, argument, problem="is no longer there")
            for path in found:
                yield from self.expand(path)
        elif os.path.isdir(argument):
            yield from walk(argument)
        else:
            yield from pictures_at(argument)


def pictures_at(path: str) -> Iterator[Input]:
    """The picture that a file is, or those that a shard holds: nothing is unpacked, whatever the names in it say.

    A damaged shard gives what stands before the damage, and then one problem. Of members of one name the first is the
    picture, and each other a problem.
    """
    if not is_shard(path):
        yield Input(path, path)
        return
    names: set[str] = set()
    try:
        for member in tar_members(Path(path)):
            if suffix(member.name) not in PICTURE_SUFFIXES:
                continue
            name = f"{path}::{member.name}"
            if member.name in names:
                yield Input(f"{name} at byte {member.offset_data}", path, problem="has the name of a member before it")
            else:
                names.add(member.name)
                yield Input(name, path, member.offset_data, member.size)
    except (tarfile.TarError, OSError, ValueError) as error:
        yield Input(path, path, problem=f"the shard cannot be read to its end: {error}")


def inputs_named(names: Sequence[str]) -> list[Input]:
    """The pictures that records name: files, addresses, and members of shards as :func:`pictures_at` calls them.

    The headers of each shard are read once.
    """
    shards = {name: found[1] for name in names if (found := _MEMBER.match(name)) and not os.path.lexists(name)}
    found_there = (item for shard in sorted(set(shards.values())) for item in pictures_at(shard))
    members = {item.name: item for item in found_there if item.name in shards}
    return [members.get(name) or Input(name, name) for name in names]


def walk(folder: str) -> Iterator[Input]:
    """Pictures and shards below a folder, sorted; links to folders are followed, each folder is visited once."""
    visited: set[str] = set()
    unreadable: list[OSError] = []
    for current, folders, files in os.walk(folder, onerror=unreadable.append, followlinks=True):
        real = os.path.realpath(current)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and (suffix(name) in PICTURE_SUFFIXES or is_shard(name)):
                yield from pictures_at(os.path.join(current, name))
    for error in unreadable:
        yield Input(str(error.filename), str(error.filename), problem=f"the folder cannot be read: {error.strerror}")


def refusal(argument: str) -> str | None:
    """Why an address is not fetched unless that is allowed; None for anything else."""
    return f"{argument!r} is an address; nothing is fetched without --allow-remote" if is_address(argument) else None


def is_shard(path: str) -> bool:
    """Whether a file is a shard, by its name."""
    return suffix(path) == ".tar"


def is_address(argument: str) -> bool:
    """Whether an argument is an address of the web."""
    return argument.lower().startswith(("http://", "https://"))


def suffix(name: str) -> str:
    """The ending of a name, in lower case."""
    return os.path.splitext(name)[1].lower()
