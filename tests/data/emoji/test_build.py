from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image, features

from blip_fast.cli import main
from blip_fast.data.emoji import build
from blip_fast.data.emoji.build import build_emoji
from blip_fast.data.emoji.drawing import EmojiFont
from blip_fast.data.pretrain import PretrainData
from blip_fast.data.retrieval import RetrievalEvalData
from blip_fast.data.transforms import eval_transform
from tests.data.emoji.debs import FONT, KEYWORDS, LETTERS, NAMES, with_digest, write_debs

pytestmark = pytest.mark.skipif(not features.check("raqm"), reason="Pillow was built without Raqm")


@pytest.fixture
def debs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(build, "FONT", with_digest(FONT))
    monkeypatch.setattr(build, "NAMES", with_digest(NAMES))
    monkeypatch.setattr(build, "KEYWORDS", tuple(with_digest(file) for file in KEYWORDS))
    return write_debs(tmp_path / "debs")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_set_is_complete_and_two_runs_give_equal_files(tmp_path: Path, debs: Path) -> None:
    counts = build_emoji(tmp_path / "a", debs)
    assert build_emoji(tmp_path / "b", debs) == counts
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    # woman, her five tones, light's tone, the arrow; not: too narrow, blank, flag, sign, the same picture again
    assert sum(counts.values()) == 8
    assert counts["test"] == 1
    assert len(list((tmp_path / "a" / "images").iterdir())) == 8
    assert Image.open(tmp_path / "a" / "images" / "0057.png").size == (136, 136)
    assert (tmp_path / "a" / "LICENSE-UNICODE.txt").is_file()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_its_files_are_read_by_the_data_sets(tmp_path: Path, debs: Path) -> None:
    build_emoji(tmp_path / "set", debs)
    train = PretrainData([tmp_path / "set" / "train.json"], tmp_path / "set", eval_transform(8))
    assert train[0].caption == "woman"
    assert train.records[0].image_id == "0057"
    test = RetrievalEvalData(tmp_path / "set" / "test.json", tmp_path / "set", eval_transform(8))
    assert "skin tone" in test.texts[0]
    web = json.loads((tmp_path / "set" / "train_web.json").read_text())
    assert len(web) == len(train)
    assert {entry["caption"] for entry in web} >= {"adult, lady"}
    assert all(isinstance(entry["match"], bool) for entry in web)


def test_emoji_that_the_font_lacks_are_not_drawn() -> None:
    font = EmojiFont(LETTERS.read_bytes())
    assert font.draw("W") is not None
    assert font.draw("I") is None  # too narrow for a picture
    assert font.draw("WW") is None  # a sequence drawn as two
    assert font.draw("\u2003") is None  # blank


def test_pillow_without_raqm_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda name: False)
    with pytest.raises(RuntimeError, match="Pillow was built without Raqm"):
        EmojiFont(b"")


def test_command_line_builds_and_explains(tmp_path: Path, debs: Path) -> None:
    runner, output = CliRunner(), str(tmp_path / "set")
    done = runner.invoke(main, ["data", "emoji", "--output", output, "--debs", str(debs)])
    assert done.exit_code == 0, done.output
    assert "1 test pairs" in done.output
    again = runner.invoke(main, ["data", "emoji", "--output", output, "--debs", str(debs)])
    assert (again.exit_code, "exists; expected a new folder" in again.output) == (1, True)
    empty = tmp_path / "empty"
    empty.mkdir()
    lacking = runner.invoke(main, ["data", "emoji", "--output", str(tmp_path / "other"), "--debs", str(empty)])
    assert lacking.exit_code == 1
    assert "holds no fonts-noto-color-emoji" in lacking.output
    assert not (tmp_path / "other").exists()
