"""`blip-fast capfilt` and its report from the command line."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from blip_fast.cli.capfilt import command
from blip_fast.data.demo_pairs import demo_root
from tests.capfilt.common import demo_entries, records_of, save_checkpoint, shard_members, write_list, write_shard
from tests.cli.test_demo import Page

ATTACK = "<script>alert('x')</script>\" onerror=\"alert(1)"


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command, list(map(str, arguments)))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_checkpoint(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def folder(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run over good, hostile and broken entries."""
    place = tmp_path_factory.mktemp("run")
    entries = demo_entries(24)
    entries[0] = {"image": entries[0]["image"], "caption": ATTACK, "key": ATTACK}
    entries[1] = {"image": "gone.png", "caption": ATTACK}
    entries[2] = {"image": entries[2]["image"], "caption": "long " * 500}
    path = write_list(place / "web.json", entries)
    result = invoke("--images", path, "--image-root", demo_root(), "--captioner", model, "--filter", model,
                    "--output", place / "out", "--keep-fraction", "0.5", "--unit-size", "10", "--max-length", "9")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "unit 000000: 10 samples, 9 scored" in result.output
    assert "24 samples: 23 scored, 1 broken_picture" in result.output
    return place / "out"


def test_options_reach_the_run(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["select"] == {"threshold": None, "keep_fraction": 0.5, "form": "list"}
    assert manifest["score"]["unit_size"] == 10
    assert manifest["score"]["max_length"] == 9
    assert manifest["pairs"] == 23
    assert len(records_of(folder)) == 24


def test_report_stands_alone_and_escapes_what_strangers_wrote(folder: Path) -> None:
    result = invoke("report", folder)
    assert result.exit_code == 0, result.output
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags
    assert "&lt;script&gt;" in text
    assert 'onerror="' not in text
    assert all(source.startswith(("data:", "#")) for source in page.sources)
    assert not re.search(r"url\((?!#)|@import|<script|<link", text)
    shown = [source for source in page.sources if source.startswith("data:image/png;base64,")]
    assert 8 <= len(shown) <= 32
    visible = " ".join(" ".join(page.texts).split())
    for part in ("kept", "removed", "broken_picture", "What the filter thinks", "23 web texts"):
        assert part in visible
    assert "long " * 80 not in text
    before = text
    assert invoke("report", folder).exit_code == 0
    assert (folder / "report.html").read_text(encoding="utf-8") == before


def test_report_of_shards_finds_their_pictures(model: str, tmp_path: Path) -> None:
    members = [(f"caf\udce9-{name}", data) for name, data in shard_members(demo_entries(5))]  # a name in Latin-1
    write_shard(tmp_path / "web.tar", members)
    common = ["--captioner", model, "--filter", model, "--output", tmp_path / "out", "--max-length", "9"]
    result = invoke("--images", tmp_path / "web*", *common)  # known for shards by what the pattern stands for
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "shards" / "000000.tar").exists()
    assert invoke("report", tmp_path / "out").exit_code == 0
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert text.count("data:image/png;base64,") == 5
    assert "caf?-0000" in text
    (tmp_path / "web.tar").unlink()
    assert invoke("report", tmp_path / "out").exit_code == 0
    assert "no longer there" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_the_next_command_can_be_copied_whatever_the_folder_is_called(model: str, tmp_path: Path) -> None:
    output = tmp_path / ("long name " * 9) / "run[b]"
    images = write_list(tmp_path / "web.json", demo_entries(2))
    result = invoke("--images", images, "--image-root", demo_root(), "--captioner", model, "--filter", model,
                    "--output", output, "--max-length", "9")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert shlex.split(result.output.splitlines()[-1].split("For pictures: ")[1]) == [
        "blip-fast", "capfilt", "report", str(output)]  # fmt: skip


def test_help_tells_lengths_and_the_prompt_apart() -> None:
    text = " ".join(invoke("--help").output.split())
    assert "Most tokens of a caption" in text
    assert "Fewest tokens of a caption" in text
    assert "[default: 'a picture of ']" in text


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "missing --images, --captioner, --filter, --output"),
        (["--images", "x.json"], 2, "missing --captioner, --filter, --output"),
        (["report", "nowhere"], 2, "does not exist"),
        (["--images", "x.json", "--captioner", "a", "--filter", "b", "--output", "o", "--threshold", "2"], 2, "--threshold"),
        (["--images", "x.json", "--captioner", "a", "--filter", "b", "--output", "o", "--threshold", "nan"], 2,
         "'--threshold': nan is no number"),
        (["--images", "x.json", "--captioner", "a", "--filter", "b", "--output", "o", "--threshold", ".5",
          "--keep-fraction", ".5"], 2, "Error: threshold=0.5 and keep_fraction=0.5; expected one of them"),
        (["--images", "y.json", "--captioner", "a", "--filter", "b", "--output", "o"], 1, "there is no 'y.json'"),
        (["--images", "x.json", "--captioner", "a.pth", "--filter", "b.pth", "--output", "o"], 1, "there is no 'a.pth'"),
    ],
)  # fmt: skip
def test_bad_options_are_named(
    arguments: list[str], code: int, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    write_list(tmp_path / "x.json", [])
    result = invoke(*arguments)
    assert result.exit_code == code
    assert message in " ".join(result.output.split())


def test_report_needs_a_finished_run(tmp_path: Path) -> None:
    result = invoke("report", tmp_path)
    assert result.exit_code == 1
    assert "expected the folder of a finished run" in result.output
