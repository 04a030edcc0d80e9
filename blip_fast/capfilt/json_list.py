"""JSON lists of any length, an entry at a time: in constant memory, and from any entry on whose place is known."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from blip_fast.checkpoints.files import write_atomically

_CHUNK = 1 << 20
_SPACES = " \t\r\n"


def read_entries(path: str | os.PathLike[str], start: int = 0) -> Iterator[tuple[int, Any]]:
    """Each entry of the list with the byte at which it starts.

    Args:
        path: a JSON file that holds one list.
        start: the byte of an entry, as an earlier pass told it; 0 begins with the list.

    Raises ValueError where the file is no list, or where it is cut off or malformed.
    """
    with Path(path).open("rb") as file:
        yield from _Reader(path, file, start).entries()


def write_list(path: str | os.PathLike[str], entries: Iterable[Any]) -> int:
    """Write a list as JSON, an entry per line; the file appears when it is complete. Returns how many there are."""
    count = 0

    def write(beside: Path) -> None:
        nonlocal count
        with beside.open("w", encoding="utf-8") as file:
            file.write("[")
            for entry in entries:
                file.write("\n" if count == 0 else ",\n")
                file.write(json.dumps(entry))
                count += 1
            file.write("\n]\n")

    write_atomically(path, write)
    return count


class _Reader:
    """A window of text that moves through the file; ``self.at`` is the byte at which ``self.text[self.here]`` stands."""

    def __init__(self, path: str | os.PathLike[str], file: IO[bytes], start: int) -> None:
        self.path, self.file, self.at = path, file, start
        self.decode = codecs.getincrementaldecoder("utf-8")().decode
        self.scan = json.JSONDecoder().raw_decode
        self.text, self.here, self.ended = "", 0, False
        file.seek(start)

    def entries(self) -> Iterator[tuple[int, Any]]:
        if self.at == 0:
            if self.next_sign() != "[":
                raise ValueError(f"{self.path} does not begin with '['; expected a JSON list of entries")
            self.skip(1)
            if self.next_sign() == "]":
                return self.end()
        while True:
            self.next_sign()
            place = self.at
            yield place, self.entry()
            sign = self.next_sign()
            if sign == "]":
                return self.end()
            if sign != ",":
                raise self.error("',' or ']'")
            self.skip(1)

    def end(self) -> None:
        """Lists put together in one file are not a list: the later ones would be lost."""
        self.skip(1)
        if self.next_sign():
            raise self.error("the end of the file")

    def entry(self) -> Any:
        while True:
            try:
                value, end = self.scan(self.text, self.here)
            except json.JSONDecodeError as error:
                if self.ended:
                    raise self.error(f"an entry ({error.msg})") from error
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, deep nesting
                raise self.error(f"an entry ({error})") from error
            else:
                # a number may go on behind what is decoded, or in the next chunk
                whole = not isinstance(value, (int, float)) or self.text[end : end + 1] in (",", "]", *_SPACES)
                if whole or self.ended:
                    self.skip(end - self.here)
                    return value
            self.read()

    def next_sign(self) -> str:
        """The next character that is no space, '' at the end of the file."""
        while True:
            while self.here < len(self.text) and self.text[self.here] in _SPACES:
                self.skip(1)
            if self.here < len(self.text):
                return self.text[self.here]
            if self.ended:
                return ""
            self.read()

    def skip(self, characters: int) -> None:
        passed = self.text[self.here : self.here + characters]
        self.at += characters if passed.isascii() else len(passed.encode())
        self.here += characters

    def read(self) -> None:
        chunk = self.file.read(_CHUNK)
        self.ended = not chunk
        try:
            self.text = self.text[self.here :] + self.decode(chunk, final=self.ended)
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path} is not UTF-8 near byte {self.at}: {error.reason}") from error
        self.here = 0

    def error(self, expected: str) -> ValueError:
        found = repr(self.text[self.here : self.here + 20]) if self.here < len(self.text) else "the end of the file"
        return ValueError(f"{self.path} is not a JSON list: at byte {self.at} {found}; expected {expected}")
