"""`blip-fast caption` from end to end: what it writes, what it survives, and going on after kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from blip_fast.cli import main
from blip_fast.inference.inputs import Inputs
from blip_fast.inference.pictures import normalised, one_picture
from tests.inference.common import bomb, build, picture, pictures, save, shard


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("model"), "BlipCaptioner")


def run(*arguments: object, lines: str | bytes = "") -> Result:
    return CliRunner().invoke(main, ["caption", *map(str, arguments)], input=lines)


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def captions(path: Path) -> dict[str, str]:
    """By image; each at most once."""
    found = records(path.read_text())
    assert len({record["image"] for record in found}) == len(found)
    return {record["image"]: record["caption"] for record in found}


def test_captions_are_the_models(tmp_path: Path, checkpoint: str) -> None:
    paths = pictures(tmp_path, 3)
    result = run(tmp_path, "--checkpoint", checkpoint, "--beams", 2)
    assert result.exit_code == 0, result.output
    model = build("BlipCaptioner")
    for path, record in zip(paths, records(result.stdout), strict=True):
        image = normalised(one_picture(Inputs([str(path)]), 32), model.visual_encoder.cls_token)
        assert record == {"image": str(path), "caption": model.generate(image[None], num_beams=2)[0]}
    assert "3 of 3 images" in result.stderr or "3 images" in result.stderr


def test_batches_and_workers_change_nothing(tmp_path: Path, checkpoint: str) -> None:
    paths = pictures(tmp_path / "files", 5)
    content = {path.name: path.read_bytes() for path in paths}
    path = shard(tmp_path / "0.tar", content)
    outputs = []
    for name, arguments in {"a": ("--batch-size", 1, "--workers", 0), "b": ("--batch-size", 4, "--workers", 2)}.items():
        for kind in ((), ("--sample", "--seed", 7)):
            output = tmp_path / f"{name}{len(kind)}.jsonl"
            common = ("--checkpoint", checkpoint, "--quiet", "--output", output)
            assert run(tmp_path / "files", path, *arguments, *kind, *common).exit_code == 0
            outputs.append(captions(output))
    assert list(outputs[0]) == [*map(str, paths), *(f"{path}::{name}" for name in content)]
    assert outputs[0] == outputs[2]
    assert outputs[1] == outputs[3]
    assert list(outputs[0].values())[:5] == list(outputs[0].values())[5:]
    assert outputs[0] != outputs[1]


def test_scores(tmp_path: Path, checkpoint: str) -> None:
    result = run(picture(tmp_path / "a.png"), "--checkpoint", checkpoint, "--scores", "--prompt", "how many ")
    (record,) = records(result.stdout)
    assert len(record["tokens"]) == len(record["token_logprobs"]) > 0
    assert record["score"] == pytest.approx(sum(record["token_logprobs"]) / len(record["tokens"]), abs=1e-4)


def test_broken_images_are_lines_and_the_run_goes_on(tmp_path: Path, checkpoint: str) -> None:
    good = pictures(tmp_path, 2)
    (tmp_path / "empty.jpg").write_bytes(b"")
    bomb(tmp_path / "bomb.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    escape = shard(tmp_path / "escape.tar", {"../../../up.png": good[0].read_bytes()})
    output = tmp_path / "out" / "captions.jsonl"
    listed = f"{tmp_path}\nhttp://localhost:9/x.png\n{tmp_path}/<script>.png\n"
    before = sorted(path.name for path in tmp_path.parent.iterdir())
    result = run("-", "--checkpoint", checkpoint, "--output", output, lines=listed)
    assert result.exit_code == 3, result.output
    assert set(captions(output)) == {*map(str, good), f"{escape}::../../../up.png"}
    problems = {
        record["image"]: record["error"]
        for record in records((output.parent / "captions.jsonl.errors.jsonl").read_text())
    }
    assert {Path(name).name: error.split(" ")[0] for name, error in problems.items()} == {
        "bomb.png": "has",
        "empty.jpg": "is",
        "loop.png": "OSError:",
        "x.png": "'http://localhost:9/x.png'",
        "<script>.png": "there",
    }
    assert sorted(path.name for path in tmp_path.parent.iterdir()) == before  # nothing was unpacked
    assert "5 images could not be read" in result.stderr


def test_names_that_are_not_utf8_come_back(tmp_path: Path, checkpoint: str) -> None:
    name = os.fsencode(tmp_path) + b"/\xff.png"
    os.rename(picture(tmp_path / "a.png"), name)
    result = run("-", "--checkpoint", checkpoint, lines=name + b"\n")
    assert os.fsencode(records(result.stdout)[0]["image"]) == name


def test_killed_and_resumed(tmp_path: Path, checkpoint: str) -> None:
    paths = pictures(tmp_path / "images", 24)
    (tmp_path / "images" / "005x.png").write_bytes(b"broken")
    output = tmp_path / "captions.jsonl"
    common = [str(tmp_path / "images"), "--checkpoint", checkpoint, "--output", str(output), "--batch-size", "2"]
    process = subprocess.Popen([sys.executable, "-m", "blip_fast.cli", "caption", *common, "--workers", "1", "--quiet"])
    deadline = time.monotonic() + 120
    while not (output.exists() and output.read_bytes().count(b"\n") >= 4):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    survived = output.read_bytes().count(b"\n")
    assert 4 <= survived < len(paths)
    with output.open("ab") as file:
        file.write(b'{"image": "' + os.fsencode(paths[-1]) + b'", "capt')  # as a write that was cut off leaves it
    result = run(*common, "--resume")
    assert result.exit_code == 3, result.output
    assert f"{len(paths) - survived} of" in result.stderr
    assert list(captions(output)) == [str(path) for path in paths]
    (problem,) = records(Path(f"{output}.errors.jsonl").read_text())
    assert problem["image"].endswith("005x.png")
    whole = tmp_path / "whole.jsonl"
    run(*[argument if argument != str(output) else whole for argument in common], "--quiet")
    assert captions(output) == captions(whole)


def test_a_run_that_cannot_start_leaves_nothing(tmp_path: Path, checkpoint: str) -> None:
    image, output = picture(tmp_path / "a.png"), tmp_path / "captions.jsonl"
    for arguments, code, message in (
        ((image, "--checkpoint", tmp_path / "none", "--output", output), 1, "there is no"),
        ((tmp_path / "none.png", "--checkpoint", checkpoint, "--output", output), 1, "there is no"),
        ((image, "--checkpoint", checkpoint, "--output", image / "x.jsonl"), 1, "a.png"),
        (("http://a.b/c.jpg", "--checkpoint", checkpoint, "--output", output), 1, "nothing is fetched without"),
        ((image, "--resume", "--checkpoint", checkpoint), 2, "--resume needs --output"),
        ((image, "--checkpoint", checkpoint, "--output", output, "--device", "cuda:99"), 2, "cannot be used here"),
        (
            (image, "--checkpoint", checkpoint, "--output", output, "--max-length", 4),
            1,
            "max_length=4; expected more than",
        ),
        ((image, "--checkpoint", checkpoint, "--output", output, "--max-length", 99), 1, "at most the model's 64"),
        ((image, "--checkpoint", checkpoint, "--output", output, "--beams", 10**6), 1, "expected at most half of"),
        (
            (image, "--checkpoint", checkpoint, "--output", output, "--min-length", 30),
            1,
            "min_length=30; expected a number",
        ),
    ):
        result = run(*arguments)
        assert (result.exit_code, message in result.output) == (code, True), result.output
        assert not output.exists()
    output.write_text("a letter to a friend\n")
    for extra in ((), ("--resume",)):
        assert run(image, "--checkpoint", checkpoint, "--output", output, *extra).exit_code == 1
    assert output.read_text() == "a letter to a friend\n"


def test_problems_do_not_take_the_place_of_captions(tmp_path: Path, checkpoint: str) -> None:
    image, output = picture(tmp_path / "a.png"), tmp_path / "captions.jsonl"
    output.write_text('{"image": "b.png", "caption": "a cat"}\n')
    result = run(image, "--checkpoint", checkpoint, "--output", output, "--errors", output, "--resume")
    assert result.exit_code == 2
    assert "is the file of --output, too; expected another" in result.output
    assert run(image, "--checkpoint", checkpoint, "--errors", output).exit_code == 1
    assert list(captions(output)) == ["b.png"]


def test_a_prompt_that_is_no_unicode_is_refused(tmp_path: Path, checkpoint: str) -> None:
    result = run(picture(tmp_path / "a.png"), "--checkpoint", checkpoint, "--prompt", "caf\udce9")
    assert result.exit_code == 1
    assert "Error: texts has 'caf" in result.output


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_precisions(tmp_path: Path, checkpoint: str, precision: str) -> None:
    image = picture(tmp_path / "a.png")
    result = run(image, "--checkpoint", checkpoint, "--precision", precision, "--device", "cpu", "--quiet")
    assert result.exit_code == 0, result.output
    assert len(records(result.stdout)) == 1
