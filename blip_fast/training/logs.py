"""The files that a run writes lines to: log.txt as published, and history.jsonl for curves."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blip_fast.checkpoints.files import write_atomically

LOG, HISTORY = "log.txt", "history.jsonl"


def log_line(
    train: Mapping[str, float],
    splits: Mapping[str, Mapping[str, float]],
    extra: Mapping[str, Any],
    train_format: str = "{:.3f}",
    metric_format: str | None = None,
) -> dict[str, Any]:
    """One line of log.txt: averages of training as strings, metrics of the splits, then ``extra`` (epoch, ...)."""
    line: dict[str, Any] = {f"train_{name}": train_format.format(value) for name, value in train.items()}
    for split, metrics in splits.items():
        for name, value in metrics.items():
            line[f"{split}_{name}"] = metric_format.format(value) if metric_format else value
    return line | dict(extra)


def append_line(path: Path, line: Mapping[str, Any] | str) -> None:
    """Append a line: JSON, or a text as it is (without line break: the published end of NLVR2's log).

    A line break that the end of the file lacks comes first.
    """
    text = line if isinstance(line, str) else json.dumps(line) + "\n"
    with path.open("ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            text = text if file.read() == b"\n" else "\n" + text
        file.write(text.encode())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file of lines; what is none (a torn last line, NLVR2's end) is left out."""
    return _objects(path.read_bytes()) if path.is_file() else []


def _objects(content: bytes) -> list[dict[str, Any]]:
    lines = []
    for text in content.splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines


def forget_from(path: Path, epoch: int, step: int = 0, start: int = 0) -> None:
    """Drop the lines of steps that a resumed run will take again: from ``step`` of ``epoch`` on.

    A line without "step" is that of a whole epoch. The first ``start`` bytes are of earlier runs and stay as they are.
    """
    if not path.is_file():
        return

    def stays(line: Mapping[str, Any]) -> bool:
        place = (line.get("epoch", -1), line["step"] if "step" in line else float("inf"))
        return place < (epoch, step)

    content = path.read_bytes()
    kept = [json.dumps(line).encode() + b"\n" for line in _objects(content[start:]) if stays(line)]
    head = content[:start]
    between = b"\n" if kept and head and not head.endswith(b"\n") else b""
    write_atomically(path, lambda part: part.write_bytes(head + between + b"".join(kept)))
