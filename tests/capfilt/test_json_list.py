"""JSON lists entry by entry, against the json module."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from blip_fast.capfilt import json_list
from blip_fast.capfilt.json_list import read_entries, write_list

ENTRIES = [
    {"image": "a.png", "caption": 'quotes " [brackets], commas'},
    {"image": "ü.png", "caption": "Füße 猫 \U0001f600"},
    12345,
    "text",
    None,
    [1, [2, {}]],
    {},
    -1.5e-3,
]


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_entries_are_those_of_json_wherever_chunks_end(tmp_path, monkeypatch, chunk, indent):
    monkeypatch.setattr(json_list, "_CHUNK", chunk)
    path = tmp_path / "list.json"
    path.write_text(json.dumps(ENTRIES, ensure_ascii=False, indent=indent), encoding="utf-8")
    found = list(read_entries(path))
    assert [entry for _, entry in found] == ENTRIES
    for number, (place, _) in enumerate(found):
        assert [entry for _, entry in read_entries(path, place)] == ENTRIES[number:]


def test_empty_lists_and_byte_order_of_spaces(tmp_path):
    path = tmp_path / "list.json"
    for text in ("[]", " [ ] ", "[\n\n]\n"):
        path.write_text(text)
        assert list(read_entries(path)) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"image": 1}', r"does not begin with '\['"),
        ("", r"does not begin with '\['"),
        ('[{"a": 1}', "the end of the file; expected ',' or ']'"),
        ('[{"a": 1} {"a": 2}]', "expected ',' or ']'"),
        ('[{"a": 1},', "expected an entry"),
        ('[{"a": tru}]', "expected an entry"),
        ('[{"a": "cut', "expected an entry"),
        ('[{"a": 1}]\n[{"a": 2}]', r"at byte 11 '\[\{\"a\": 2\}\]'; expected the end of the file"),
        ("[] []", "at byte 3 .*; expected the end of the file"),
        ('[{"a": 1}, ' + "[" * 100_000, "at byte 11 .*; expected an entry"),
        (f"[1, {'1' * 5000}]", "at byte 4 .*; expected an entry"),
    ],
)
def test_what_is_no_list_is_named_with_its_place(tmp_path, text, message):
    path = tmp_path / "list.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        list(read_entries(path))


def test_bytes_that_are_no_utf8_are_named(tmp_path):
    path = tmp_path / "list.json"
    path.write_bytes(b'[{"a": "\xff"}]')
    with pytest.raises(ValueError, match="not UTF-8"):
        list(read_entries(path))


def test_written_lists_are_json(tmp_path):
    path = tmp_path / "list.json"
    hostile = ["\ud800", "</script>", "a\nb"]
    assert write_list(path, iter(hostile)) == 3
    assert json.loads(path.read_text(encoding="utf-8")) == hostile
    assert write_list(path, []) == 0
    assert json.loads(path.read_text()) == []


def test_memory_does_not_grow_with_the_list(tmp_path: Path):
    path = tmp_path / "list.json"
    entry = {"image": "x" * 100, "caption": "y" * 400}

    def peak(count: int) -> int:
        tracemalloc.start()
        write_list(path, (entry for _ in range(count)))
        assert sum(1 for _ in read_entries(path)) == count
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert path.with_name("list.json") == path
    small, large = peak(5_000), peak(50_000)  # 25 MB
    assert large < 1.3 * small
