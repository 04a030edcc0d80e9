from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from blip_fast.data.annotations import Entry, EntryError, read_records, read_strings
from blip_fast.data.bad_samples import BadSamples
from blip_fast.data.roots import Root
from tests.data.conftest import Annotate


@dataclasses.dataclass(frozen=True)
class Line:
    text: str


def to_line(entry: Entry) -> Line:
    return Line(entry.text("text"))


def test_only_line_breaks_end_a_line(annotate: Annotate) -> None:
    texts = ["next\u0085line", "line\u2028separator", "form\ffeed"]
    file = annotate("".join(json.dumps({"text": text}, ensure_ascii=False) + "\r\n" for text in texts), "a.jsonl")
    assert [line.text for line in read_records([file], Line, to_line)] == texts


@pytest.mark.parametrize("get", [Entry.text, Entry.texts])
def test_halves_of_characters_are_counted_as_bad(get: Any, annotate: Annotate) -> None:
    bad = BadSamples(1)
    file = annotate([{"text": "whole \U0001f600"}, {"text": "cut \ud83d"}])
    assert len(read_records([file], Line, lambda entry: Line(str(get(entry, "text"))), bad)) == 1
    assert next(iter(bad.messages)).endswith(
        r"'text' is 'cut \ud83d'; expected text without halves of characters (lone surrogates)"
    )


def test_files_follow_each_other(annotate: Annotate) -> None:
    first = annotate([{"text": "one"}, {"text": "two"}], "1.json")
    second = annotate('{"text": "three"}\n\n{"text": "four"}\n', "2.jsonl")
    assert [line.text for line in read_records([second, first], Line, to_line)] == ["three", "four", "one", "two"]


@pytest.mark.parametrize(
    ("entries", "name", "message"),
    [
        ("{not json", "a.json", r"a\.json is not JSON"),
        ({"text": "a"}, "a.json", "holds a dict; expected a list"),
        (["a"], "a.json", "entry 0: is a str; expected an object"),
        ([{"text": "a"}, {}], "a.json", "entry 1: 'text' is None; expected a non-empty string"),
        ([{"text": ""}], "a.json", "entry 0: 'text' is ''"),
        ('{"text": "a"}\n{"text": ', "a.jsonl", "line 2: is not JSON"),
        ([], "a.json", "hold no entries"),
    ],
)
def test_errors_name_file_and_entry(annotate: Annotate, entries: Any, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_records([annotate(entries, name)], Line, to_line)


def test_malformed_entries_are_counted_up_to_the_limit(annotate: Annotate) -> None:
    file = annotate('{"text": "good"}\n{"text": \n["no"]\n{"text": 1}\n', "a.jsonl")
    bad = BadSamples(3)
    assert [line.text for line in read_records([file], Line, to_line, bad)] == ["good"]
    assert [message.split(", ")[1].split(":")[0] for message in bad.messages] == ["line 2", "line 3", "line 4"]
    with pytest.raises(RuntimeError, match=r"3 samples cannot .* max_bad_samples=2; the last: .* line 4"):
        read_records([file], Line, to_line, BadSamples(2))


def test_a_path_out_of_the_root_is_an_error_however_many_bad_samples_are_allowed(
    annotate: Annotate, root: Path
) -> None:
    file = annotate([{"text": "a.png"}, {"text": "../secret.png"}])
    with pytest.raises(ValueError, match=r"entry 1: path '\.\./secret\.png' leads out of image_root="):
        read_records([file], Line, lambda entry: Line(entry.path("text", Root(root))), BadSamples(100))


def test_a_missing_published_file_says_where_it_is(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"coco_karpathy_val\.json is missing; the published one is at https://"
    ):
        read_records([tmp_path / "coco_karpathy_val.json"], Line, to_line)
    with pytest.raises(FileNotFoundError, match=r"mine\.json is missing$"):
        read_records([tmp_path / "mine.json"], Line, to_line)


def test_one_path_is_not_a_list_of_paths(annotate: Annotate) -> None:
    with pytest.raises(TypeError, match="is one path; expected a list of paths"):
        read_records(str(annotate([])), Line, to_line)


def test_entries_give_what_is_asked_or_an_error() -> None:
    entry = Entry(
        {"id": 7, "name": "x", "yes": True, "one": "a", "many": ["a", "b"], "none": [], "mixed": ["a", 1]}, "here"
    )
    assert (entry.id("id"), entry.id("name")) == (7, "x")
    assert (entry.texts("one"), entry.texts("many")) == (("a",), ("a", "b"))
    for getter, name in (
        (entry.id, "yes"),
        (entry.id, "many"),
        (entry.texts, "none"),
        (entry.texts, "mixed"),
        (entry.text, "id"),
    ):
        with pytest.raises(EntryError, match=f"here: '{name}' is"):
            getter(name)


def test_answer_lists_hold_strings(annotate: Annotate) -> None:
    assert read_strings(annotate(["yes", "no"])) == ["yes", "no"]
    with pytest.raises(ValueError, match="entry 1: is 2; expected a non-empty string"):
        read_strings(annotate(json.dumps(["yes", 2])))
    with pytest.raises(ValueError, match="holds no entries"):
        read_strings(annotate([]))
