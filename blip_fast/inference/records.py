"""JSON lines written as a run goes, which a later run continues after any end of this one."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

_BEGINNING = b'{"image": "'


class RecordFile:
    """Records, one JSON object a line, on disk as soon as :meth:`write` returns; a context manager.

    Args:
        path: where to; None is standard output.
        resume: go on behind the records that ``path`` holds. A last line that was cut off is dropped.

    Attributes:
        done: the values of "image" in the records that were there.

    Raises FileExistsError where the file is there and ``resume`` is not, ValueError where it holds anything else, OSError where
    standard output is meant and closed.
    """

    def __init__(self, path: Path | None, resume: bool = False) -> None:
        self.done: set[str] = set()
        if path is None and sys.stdout is None:  # of a process that was started without
            raise OSError("standard output is closed; expected it open for the records")
        self.stream: TextIO = sys.stdout
        self.path = path
        if path is not None and path.exists():
            if not resume:
                raise FileExistsError(
                    f"{path} exists already; --resume goes on behind its records, or name another file"
                )
            self.done = read_done(path)

    def write(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Append records, in one piece."""
        self.stream.write("".join(json_line(record, self.stream.encoding) for record in records))
        self.stream.flush()

    def __enter__(self) -> RecordFile:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.stream = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.path is not None:
            os.fsync(self.stream.fileno())
            self.stream.close()


class ProblemFile:
    """What could not be read: ``{"image": ..., "error": ...}`` a line, begun anew by every run; there only if needed.

    Without a path each problem is a line of standard error; a device or a pipe is written to as it is. Raises
    FileExistsError where the file holds anything else.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self.count = path, 0
        if path is not None and path.is_file():
            check_problems(path)
            path.unlink()

    def write(self, problems: Iterable[tuple[str, str]]) -> None:
        """Append names and problems."""
        lines = [json_line({"image": name, "error": problem}) for name, problem in problems]
        self.count += len(lines)
        if self.path is None:
            sys.stderr.write("".join(lines))
        elif lines:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(lines))


def read_done(path: Path) -> set[str]:
    """The images of all records in a file; a last line that a run left unfinished is cut off.

    Raises ValueError where another line is no record: then it is some other file, and stays as it is.
    """
    done, end = set(), 0
    with path.open("r+b") as file:
        for number, line in enumerate(file, start=1):
            name = _image_of(line)
            if name is None and not _is_torn(line):
                raise ValueError(
                    f"line {number} of {path} is no record with an 'image'; expected a file of this command"
                )
            if name is None:
                break
            done.add(name)
            end += len(line)
        file.truncate(end)
    return done


def check_problems(path: Path) -> None:
    """FileExistsError unless a file holds the problems of an earlier run, the last line of which may be cut off."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if _record_of(line).keys() != {"image", "error"} and not _is_torn(line):
                raise FileExistsError(
                    f"line {number} of {path} is no problem of an earlier run, and this run would replace the file; "
                    "expected another name"
                )


def json_line(record: Mapping[str, Any], encoding: str | None = "utf-8") -> str:
    """A record as one line. What the encoding cannot say are escapes: file names that are not UTF-8 keep their bytes.

    Raises ValueError where a number is NaN or infinite, which no JSON is.
    """
    try:
        text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{record} has a number that is not finite; expected a model of finite weights") from error
    try:
        text.encode(encoding or "utf-8")  # a stream in memory has none
    except UnicodeEncodeError:
        text = json.dumps(record)
    return text + "\n"


def _record_of(line: bytes) -> dict[str, Any]:
    """The JSON object that a whole line is; an empty one for any other line."""
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) and line.endswith(b"\n") else {}


def _image_of(line: bytes) -> str | None:
    name = _record_of(line).get("image")
    return name if isinstance(name, str) else None


def _is_torn(line: bytes) -> bool:
    """Whether a line is the beginning of a record, or the zeros that a file system may leave in its place."""
    return not line.endswith(b"\n") and (_BEGINNING.startswith(line[: len(_BEGINNING)]) or not line.strip(b"\0"))
