"""Records on disk as they are written, and going on after any end."""

from __future__ import annotations

import io
import json
import os
import stat
from pathlib import Path

import pytest

from blip_fast.inference.records import ProblemFile, RecordFile, json_line

LINES = "".join(json_line({"image": name, "caption": "<b>é</b>\u2028"}) for name in "abc")


def test_going_on(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.jsonl"
    with RecordFile(path) as records:
        records.write([{"image": "a"}, {"image": "b\n"}])
        assert path.read_text().count("\n") == 2  # before the end
    with pytest.raises(FileExistsError, match="exists already; --resume goes on behind its records"):
        RecordFile(path)
    with RecordFile(path, resume=True) as records:
        assert records.done == {"a", "b\n"}
        records.write([{"image": "c"}])
    assert [json.loads(line)["image"] for line in path.read_text().splitlines()] == ["a", "b\n", "c"]


def test_a_torn_last_line_is_dropped_wherever_it_was_torn(tmp_path: Path) -> None:
    path, content = tmp_path / "a.jsonl", LINES.encode()
    ends = [number + 1 for number, byte in enumerate(content) if byte == ord("\n")]
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        whole = [end for end in ends if end <= cut]
        assert RecordFile(path, resume=True).done == set("abc"[: len(whole)])
        assert path.read_bytes() == content[: max(whole, default=0)]


def test_zeros_behind_the_last_line_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES.encode() + bytes(100))
    assert RecordFile(path, resume=True).done == {"a", "b", "c"}
    assert path.read_bytes() == LINES.encode()


@pytest.mark.parametrize("bad", ["{}", "[1]", '"image"', '{"image": 3}', "x", ""])
def test_another_file_is_left_alone(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"{bad}\n{LINES}")
    with pytest.raises(ValueError, match=r"line 1 of .* is no record with an 'image'"):
        RecordFile(path, resume=True)
    assert path.read_text() == f"{bad}\n{LINES}"


@pytest.mark.parametrize("content", ["a letter", "a letter\n", LINES + "[]\n", LINES + "a letter"])
def test_another_files_last_line_is_no_torn_record(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match="is no record with an 'image'"):
        RecordFile(path, resume=True)
    assert path.read_text() == content


def test_names_that_are_not_utf8() -> None:
    name = b"\xff.png".decode("utf-8", "surrogateescape")
    line = json_line({"image": name})
    assert line.isascii()
    assert json.loads(line)["image"] == name


def test_an_output_that_knows_few_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr("sys.stdout", stream)
    with RecordFile(None) as records:
        records.write([{"image": "é.png"}, {"image": "図.png"}])
    assert stream.buffer.getvalue().decode("latin-1") == '{"image": "é.png"}\n{"image": "\\u56f3.png"}\n'


def test_problems_begin_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "errors.jsonl"
    problems = ProblemFile(path)
    problems.write([])
    assert not path.exists()
    problems.write([("a", "is empty")])
    assert (problems.count, json.loads(path.read_text())) == (1, {"image": "a", "error": "is empty"})
    ProblemFile(path)
    assert not path.exists()
    ProblemFile(None).write([("a", "is empty")])
    assert json.loads(capsys.readouterr().err) == {"image": "a", "error": "is empty"}


@pytest.mark.parametrize("content", ["my notes\n", LINES, "{}\n", json_line({"image": "a", "error": "b"}) + "x\n"])
def test_problems_replace_no_other_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(content)
    with pytest.raises(FileExistsError, match=r"line \d of .* is no problem of an earlier run"):
        ProblemFile(path)
    assert path.read_text() == content


def test_problems_that_a_run_left_unfinished_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "errors.jsonl"
    path.write_text(json_line({"image": "a", "error": "is empty"}) + '{"image": "b", "err')
    ProblemFile(path)
    assert not path.exists()


def test_problems_can_go_to_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    problems = ProblemFile(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    problems.write([("a", "is empty")])
    assert json.loads(os.read(reader, 1000)) == {"image": "a", "error": "is empty"}
    os.close(reader)
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_a_stream_without_encoding() -> None:
    assert json_line({"image": "caf\u00e9"}, io.StringIO().encoding) == '{"image": "caf\u00e9"}\n'


def test_standard_output_that_is_closed_is_told_before_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    with pytest.raises(OSError, match="standard output is closed; expected it open for the records"):
        RecordFile(None)


@pytest.mark.parametrize("score", [float("nan"), -float("inf")])
def test_what_is_no_json_is_not_written(tmp_path: Path, score: float) -> None:
    path = tmp_path / "captions.jsonl"
    with RecordFile(path) as records, pytest.raises(ValueError, match="not finite; expected a model of finite weights"):
        records.write([{"image": "a", "score": 0.5}, {"image": "b", "score": score}])
    assert path.read_text() == ""
