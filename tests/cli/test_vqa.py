"""`blip-fast vqa`: answers written and chosen, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from blip_fast.cli import main
from tests.inference.common import build, picture, pictures, save

ANSWERS = ["yes", "no", "two dogs", "blue"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("model"), "BlipVQA")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["vqa", *map(str, arguments)])


def records(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_answers(tmp_path: Path, checkpoint: str) -> None:
    image = picture(tmp_path / "a.png")
    found = records(run(image, "Is it red?", "how many", "--checkpoint", checkpoint, "--beams", 2))
    assert [(record["image"], record["question"]) for record in found] == [
        (str(image), q) for q in ("Is it red?", "how many")
    ]
    for record in found:
        assert isinstance(record["answer"], str)
        assert record["score"] < 0


@pytest.mark.parametrize("form", ["lines", "json"])
def test_choice_among_candidates(tmp_path: Path, checkpoint: str, form: str) -> None:
    (tmp_path / "answers").write_text("\n".join([*ANSWERS, ""]) if form == "lines" else json.dumps(ANSWERS))
    arguments = (picture(tmp_path / "a.png"), "Is it red?", "--checkpoint", checkpoint)
    (record,) = records(run(*arguments, "--candidates", tmp_path / "answers"))
    assert record["answer"] in ANSWERS
    (tmp_path / "answers").write_text(record["answer"] + "\n")
    assert records(run(*arguments, "--candidates", tmp_path / "answers")) == [record]


def test_candidates_of_an_editor_on_windows(tmp_path: Path, checkpoint: str) -> None:
    (tmp_path / "answers").write_bytes(b"\xef\xbb\xbfyes\r\n")
    arguments = (picture(tmp_path / "a.png"), "Is it red?", "--checkpoint", checkpoint)
    (record,) = records(run(*arguments, "--candidates", tmp_path / "answers"))
    assert record["answer"] == "yes"


def test_refusals_are_one_sentence(tmp_path: Path, checkpoint: str) -> None:
    image, other = picture(tmp_path / "a.png"), tmp_path / "other"
    build("BlipPretrain").save_pretrained(other)
    (tmp_path / "list.json").write_text('["yes", 3]')
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    (tmp_path / "broken.png").write_bytes(b"")
    pictures(tmp_path / "many", 2)
    for arguments, message in (
        (
            (image, "q", "--checkpoint", other),
            "is a checkpoint of BlipPretrain and has not learned to answer questions",
        ),
        ((image, "q", "--checkpoint", checkpoint, "--candidates", tmp_path / "list.json"), "holds no list of answers"),
        ((image, "q", "--checkpoint", checkpoint, "--candidates", tmp_path / "empty.txt"), "holds no list of answers"),
        (
            (image, "q", "--checkpoint", checkpoint, "--candidates", tmp_path / "latin.txt"),
            "latin.txt is no text in UTF-8",
        ),
        ((image, "caf\udce9", "--checkpoint", checkpoint), r"texts has 'caf\udce9'; expected text without halves"),
        ((tmp_path / "none.png", "q", "--checkpoint", checkpoint), "there is no"),
        ((tmp_path / "broken.png", "q", "--checkpoint", checkpoint), "broken.png: is empty"),
        ((tmp_path / "many", "q", "--checkpoint", checkpoint), "names several images; expected one"),
        (("https://example.org/a.png", "q", "--checkpoint", checkpoint), "nothing is fetched without --allow-remote"),
    ):
        result = run(*arguments)
        assert result.exit_code == 1
        assert result.output.startswith("Error: ")
        assert message in result.output
        assert result.output.count("\n") == 1
