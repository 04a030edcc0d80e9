"""The run from end to end, on the bundled drawings in place of the emoji set and for one epoch each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from blip_fast.benchmarks.environment import REPOSITORY
from blip_fast.cli import main
from blip_fast.data.demo_pairs import demo_root
from blip_fast.tasks.train_demo import Plan, prepare, settings_of

HELD_OUT = 8
FIGURES = REPOSITORY / "benchmarks" / "results" / "train_demo.json"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A set of the emoji set's files: 64 pairs to train on and 8 in each other split."""
    folder = tmp_path / "set"
    shutil.copytree(demo_root() / "images", folder / "images")
    train, test = (json.loads((demo_root() / f"{split}.json").read_text()) for split in ("train", "test"))
    for split, pairs in (("train", train[:64]), ("val", train[64 : 64 + HELD_OUT]), ("test", test[:HELD_OUT])):
        (folder / f"{split}.json").write_text(json.dumps(pairs))
    return folder


def test_all_programs_run_and_report(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    arguments = ["train-demo", "--data", str(data), "--output", str(output), "--share", "0.01", "--seed", "3"]
    run = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert run.exit_code == 0, run.output
    results = json.loads((output / "results.json").read_text())
    assert results["epochs"] == {"pretrain": 1, "retrieval": 1, "caption": 1}
    assert results["seed"] == 3
    assert set(results["seconds"]) == {"pretrain", "retrieval", "caption"}
    assert {f"txt_r{k}" for k in (1, 5, 10)} < set(results["retrieval"])
    baseline = results["captions"]["nearest_picture"]
    assert baseline["exact"] == 0.0  # no test caption is a training caption
    assert baseline["CIDEr"] > results["captions"]["model"]["CIDEr"]  # after three steps the model says nothing
    assert "nearest training picture's" in run.output
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 1
    assert "is not empty; expected a new folder" in again.output


def test_what_is_no_emoji_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no train\.json; 'blip-fast data emoji' makes the set"):
        prepare(tmp_path, tmp_path / "out")


def test_shortened_plan() -> None:
    assert Plan(12, 8, 4).shortened(0.25) == Plan(3, 2, 1)
    assert Plan(12, 8, 4).shortened(0.001) == Plan(1, 1, 1)


def test_the_committed_figures_are_of_these_settings() -> None:
    recorded = json.loads(FIGURES.read_text())
    settings = settings_of(Plan(), Path("build/emoji"), Path("build/train-demo"))
    assert json.loads(json.dumps(settings)) == recorded["settings"]
