"""The CapFilt demo on bundled drawings, a few steps each: every part runs, and nothing is shown that must not be."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from blip_fast.benchmarks.environment import REPOSITORY
from blip_fast.cli.capfilt import command
from blip_fast.data.demo_pairs import demo_root
from blip_fast.report.capfilt_demo import capfilt_demo_page, gains
from blip_fast.tasks import capfilt_demo
from blip_fast.tasks.capfilt_demo import (
    ROWS,
    CapFiltDemoSettings,
    WebPair,
    filter_metrics,
    run_capfilt_demo,
    split_pairs,
    summarise,
)
from blip_fast.tasks.small import SmallSizes

SIZES = SmallSizes(image_size=36, batch_size=8, queue_size=16)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 drawings with their words in alphabetical order as web text, every third moved to the next but two."""
    folder = tmp_path_factory.mktemp("drawings")
    shutil.copytree(demo_root() / "images", folder / "images")
    clean = json.loads((demo_root() / "train.json").read_text())[:60]
    held_out = json.loads((demo_root() / "test.json").read_text())[:8]
    texts = [" ".join(sorted(entry["caption"].replace(":", "").split())) for entry in clean]
    web = [
        {"image": entry["image"], "caption": texts[(n + 3) % 60 if n % 3 == 0 else n], "match": n % 3 != 0}
        for n, entry in enumerate(clean)
    ]
    for name, entries in (("train", clean), ("train_web", web), ("test", held_out)):
        (folder / f"{name}.json").write_text(json.dumps(entries))
    return folder


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("demo")
    settings = CapFiltDemoSettings(data, output, steps=4, finetune_steps=3, sizes=SIZES)
    return output, run_capfilt_demo(settings, 1, lambda line: None)


def test_all_rows_and_numbers_are_there(finished: tuple[Path, dict[str, Any]]) -> None:
    output, result = finished
    assert json.loads((output / "results.json").read_text()) == result
    (run,) = result["seeds"]
    assert run["pairs"] == {"clean": 15, "web": 45}
    assert list(run["rows"]) == list(ROWS)
    assert run["rows"]["web"]["pairs"] == 60
    bootstrapped = json.loads((output / "seed-0" / "bootstrapped" / "manifest.json").read_text())
    kept = {kind: bootstrapped[kind]["kept"] for kind in ("web", "synthetic")}
    assert run["rows"]["filter"]["pairs"] == 15 + kept["web"]
    assert run["rows"]["random"]["pairs"] == run["rows"]["filter"]["pairs"]
    assert run["rows"]["both"]["pairs"] == 15 + kept["web"] + kept["synthetic"]
    assert run["rows"]["captioner"]["pairs"] >= 15 + 45
    for row in run["rows"].values():
        assert all(0 <= row[name] <= 100 for name in ("txt_r1", "txt_r5", "img_r1", "img_r5", "exact"))
    assert 0 <= run["filter"]["auc_itm"] <= 1
    assert run["filter"]["noise"] == pytest.approx(1 / 3, abs=0.15)


def test_what_is_finished_is_not_repeated(
    finished: tuple[Path, dict[str, Any]], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, result = finished
    monkeypatch.setattr(capfilt_demo, "train_demo", lambda *arguments: pytest.fail("trained again"))
    monkeypatch.setattr(capfilt_demo, "finetune_filter", lambda *arguments: pytest.fail("trained again"))
    settings = CapFiltDemoSettings(data, output, steps=4, finetune_steps=3, sizes=SIZES)
    assert run_capfilt_demo(settings, 1, lambda line: None) == result
    with pytest.raises(ValueError, match="holds a demo with other settings"):
        run_capfilt_demo(
            CapFiltDemoSettings(data, output, steps=5, finetune_steps=3, sizes=SIZES), 1, lambda line: None
        )


def test_truth_about_web_texts_reaches_no_file_that_is_trained_on(
    finished: tuple[Path, dict[str, Any]], data: Path
) -> None:
    output, _ = finished
    clean, web = split_pairs(CapFiltDemoSettings(data, output), 0)
    assert not {pair.image for pair in clean} & {pair.image for pair in web}
    for name in ("human", *ROWS):
        entries = json.loads((output / "seed-0" / f"{name}.json").read_text())
        assert {key for entry in entries for key in entry} <= {"image", "caption", "image_id"}
    held_out = {entry["image"].split("/")[-1] for entry in json.loads((data / "test.json").read_text())}
    assert not held_out & {Path(pair.image).name for pair in (*clean, *web)}
    captions = {entry["caption"] for entry in json.loads((output / "seed-0" / "web.json").read_text())}
    assert captions == {pair.text for pair in web}


def test_seeds_divide_the_pictures_differently(data: Path, tmp_path: Path) -> None:
    settings = CapFiltDemoSettings(data, tmp_path)
    assert split_pairs(settings, 0) == split_pairs(settings, 0)
    assert set(split_pairs(settings, 0)[0]) != set(split_pairs(settings, 1)[0])


def test_page_stands_alone(finished: tuple[Path, dict[str, Any]]) -> None:
    _, result = finished
    page = capfilt_demo_page(result)
    assert all(title in page for title in ROWS.values())
    assert "say nothing about photographs" in page
    assert "src=" not in page


def test_gains_count_seeds() -> None:
    def run(web: float, both: float) -> dict[str, Any]:
        def row(value: float) -> dict[str, float]:
            return dict.fromkeys(("txt_r1", "txt_r5", "img_r1", "img_r5", "CIDEr", "exact"), value)

        return {"rows": dict.fromkeys(ROWS, row(0)) | {"web": row(web), "filter": row(web), "both": row(both)}}

    counts = gains({"seeds": [run(1, 2), run(1, 1), run(3, 4)]})
    assert {row: columns["CIDEr"] for row, columns in counts.items()} == {
        "filter": 0,
        "random": 0,
        "captioner": 0,
        "both": 2,
    }


def test_summary_is_over_seeds() -> None:
    assert summarise([{"a": {"b": 1.0}}, {"a": {"b": 4.0}}]) == {"a": {"b": {"mean": 2.5, "min": 1.0, "max": 4.0}}}


def test_filter_is_judged_by_the_truth() -> None:
    web = [WebPair("x", "t", match, "c") for match in (True, True, False, False)]
    records = [
        {"web": {"itm": itm, "cosine": -itm, "kept": itm >= 0.5}, "synthetic": []} for itm in (0.9, 0.4, 0.6, 0.1)
    ]
    metrics = filter_metrics(records, web)
    assert metrics == {"auc_itm": 0.75, "auc_itc": 0.25, "noise": 0.5, "right_kept": 0.5, "wrong_kept": 0.5}


def test_missing_and_mismatched_files_are_named(data: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(command, ["demo", str(tmp_path), "--output", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "train.json is missing" in " ".join(result.output.split())
    for name in ("train", "test"):
        shutil.copy(data / f"{name}.json", tmp_path)
    (tmp_path / "train_web.json").write_text("[]")
    with pytest.raises(ValueError, match="different pictures"):
        split_pairs(CapFiltDemoSettings(tmp_path, tmp_path), 0)


def test_the_committed_figures_are_of_the_defaults_and_stand_in_the_readme() -> None:
    recorded = json.loads((REPOSITORY / "benchmarks" / "results" / "capfilt_demo.json").read_text())
    defaults = CapFiltDemoSettings(Path(), Path())
    assert {name: recorded[name] for name in ("steps", "finetune_steps", "clean_share", "sizes")} == {
        name: value for name, value in dataclasses.asdict(defaults).items() if name not in ("data", "output")
    }
    readme = (REPOSITORY / "README.md").read_text()
    for row, title in ROWS.items():
        cells = [
            f"{cell['mean']:.{digits}f} ({cell['min']:.{digits}f} to {cell['max']:.{digits}f})"
            for column, digits in (("txt_r1", 1), ("img_r1", 1), ("CIDEr", 0))
            for cell in [recorded["summary"]["rows"][row][column]]
        ]
        assert f"| {title} | {' | '.join(cells)} |" in readme
