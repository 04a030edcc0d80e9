"""Reads and checks annotation files: JSON lists of objects, or JSON lines. Errors name the file and the entry."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from blip_fast.data.bad_samples import BadSamples
from blip_fast.data.published import published_address
from blip_fast.data.records import PackedRecords
from blip_fast.data.roots import Root

Record = TypeVar("Record")
Paths = Sequence[str | os.PathLike[str]]


class EntryError(ValueError):
    """An entry of an annotation file lacks a field, or has one of another kind than expected."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One object of an annotation file; ``where`` names file and place. Getters raise :class:`EntryError`."""

    fields: Any
    where: str

    def __post_init__(self) -> None:
        if not isinstance(self.fields, dict):
            raise EntryError(f"{self.where}: is a {type(self.fields).__name__}; expected an object")

    def __contains__(self, name: str) -> bool:
        return name in self.fields

    def text(self, name: str) -> str:
        """A string that is not empty."""
        value = self.fields.get(name)
        if not isinstance(value, str) or not value:
            raise self.error(name, "a non-empty string")
        return self._whole(name, value)

    def texts(self, name: str) -> tuple[str, ...]:
        """At least one string; one alone need not stand in a list."""
        value = self.fields.get(name)
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
            raise self.error(name, "a list of non-empty strings")
        return tuple(self._whole(name, text) for text in texts)

    def id(self, name: str) -> int | str:
        """A whole number or a string that is not empty."""
        value = self.fields.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, str)) or value == "":
            raise self.error(name, "a whole number or a string")
        return value

    def path(self, name: str, root: Root) -> str:
        """A path below ``root``. One that leads out is a plain ValueError: such a file is not to be trusted at all."""
        return self.checked_path(self.text(name), root)

    def checked_path(self, path: str, root: Root) -> str:
        """``path``, if it stays below ``root``; see :meth:`path`."""
        if not root.covers(path):
            raise ValueError(f"{self.where}: path {path!r} leads out of {root}")
        return path

    def _whole(self, name: str, text: str) -> str:
        """``text``, if it is none that JSON can hold, but neither tokenizers nor file systems."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise self.error(name, "text without halves of characters (lone surrogates)") from error
        return text

    def error(self, name: str, expected: str) -> EntryError:
        """The error for a field that is not as expected."""
        return EntryError(f"{self.where}: '{name}' is {self.fields.get(name)!r:.100}; expected {expected}")


def read_records(
    files: Paths,
    record_class: type[Record],
    to_record: Callable[[Entry], Record],
    bad: BadSamples | None = None,
) -> PackedRecords[Record]:
    """Records of all entries of ``files``, one file after the other.

    Malformed entries (and lines that are no JSON) are left out and counted in ``bad``; without ``bad`` the first one
    raises.

    Raises:
        FileNotFoundError: a file is missing; for published ones the message tells where they are.
        ValueError: a file is no list, holds no entry, or names a path that leads out of its root.
    """
    if isinstance(files, (str, os.PathLike)):
        raise TypeError(f"annotation_files={str(files)!r} is one path; expected a list of paths")
    records = PackedRecords(record_class, _records(files, to_record, bad))
    if not len(records):
        raise ValueError(f"annotation_files={[str(file) for file in files]} hold no entries")
    return records


def _records(files: Paths, to_record: Callable[[Entry], Record], bad: BadSamples | None) -> Iterator[Record]:
    for file in files:
        for where, make_fields in _entries(Path(file)):
            try:
                record = to_record(Entry(make_fields(), where))
            except EntryError as error:
                if bad is None:
                    raise
                bad.add([str(error)])
                continue
            yield record


def _entries(file: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Where each entry stands, and a function that gives it."""
    if file.suffix == ".jsonl":
        for number, line in enumerate(_text(file).split("\n"), start=1):
            if line.strip():
                where = f"annotation file {file}, line {number}"
                yield where, lambda line=line, where=where: _parse_line(line, where)  # type: ignore[misc]
        return
    for number, fields in enumerate(read_list(file)):
        yield f"annotation file {file}, entry {number}", lambda fields=fields: fields  # type: ignore[misc]


def _parse_line(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise EntryError(f"{where}: is not JSON: {error}") from error


def read_list(file: str | os.PathLike[str]) -> list[Any]:
    """The list in a JSON file; FileNotFoundError or ValueError name the file."""
    try:
        entries = json.loads(_text(Path(file)))
    except ValueError as error:
        raise ValueError(f"annotation file {file} is not JSON: {error}") from error
    if not isinstance(entries, list):
        raise ValueError(f"annotation file {file} holds a {type(entries).__name__}; expected a list")
    return entries


def read_strings(file: str | os.PathLike[str]) -> list[str]:
    """The strings in a JSON list, such as the answers that VQA ranks (answer_list.json)."""
    strings = read_list(file)
    for number, text in enumerate(strings):
        if not isinstance(text, str) or not text:
            raise ValueError(f"annotation file {file}, entry {number}: is {text!r:.100}; expected a non-empty string")
    if not strings:
        raise ValueError(f"annotation file {file} holds no entries")
    return strings


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        address = published_address(file.name)
        hint = f"; the published one is at {address}" if address else ""
        raise FileNotFoundError(f"annotation file {file} is missing{hint}") from error
