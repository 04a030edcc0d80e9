"""The demo from the command line, with four steps: what it writes, and that it repeats to the bit."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from transformers import PreTrainedTokenizerFast

from blip_fast.cli.demo import command
from blip_fast.data.pretrain import PairRecord
from blip_fast.models import BlipCaptioner, BlipPretrain
from blip_fast.report.demo import demo_page
from blip_fast.tasks.demo import BATCH_SIZE, run_demo

STEPS = 4


def invoke(output: Path, *arguments: str) -> Result:
    return CliRunner().invoke(command, ["--steps", str(STEPS), "--output", str(output), *arguments])


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    output = tmp_path_factory.mktemp("demo") / "new" / "folder"
    result = invoke(output, "--seed", "5")
    assert result.exit_code == 0, result.output
    return output, result


def read_metrics(output: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    assert metrics.pop("seconds")["training"] > 0
    return metrics


class Page(HTMLParser):
    """Collects tags, texts and the sources of pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_same_seed_gives_the_same_numbers_to_the_bit(first: tuple[Path, Result], tmp_path: Path) -> None:
    assert invoke(tmp_path, "--seed", "5").exit_code == 0
    assert read_metrics(tmp_path) == read_metrics(first[0])


def test_metrics_are_complete(first: tuple[Path, Result]) -> None:
    metrics = read_metrics(first[0])
    assert (metrics["seed"], metrics["settings"]["max_steps"]) == (5, STEPS)
    assert metrics["pairs"] == {"train": 182, "held_out": 26}
    assert {name: len(values) for name, values in metrics["log"].items()} == dict.fromkeys(
        ("itc", "itm", "lm", "lr", "alpha"), STEPS
    )
    for kind in ("contrastive", "reranked"):
        assert all(0 <= share <= 1 for share in metrics["retrieval"][kind].values())
    assert metrics["retrieval"]["chance"] == {"r1": 1 / 26, "r5": 5 / 26}
    assert len(metrics["captions"]["held_out"]) == 26
    assert metrics["environment"]["torch"] == torch.__version__


def test_report_stands_alone_and_has_its_parts(first: tuple[Path, Result]) -> None:
    output, _ = first
    text = (output / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags.count("svg") == 6  # four curves, map and histogram of matching scores
    assert len([source for source in page.sources if source.startswith("data:image/png;base64,")]) >= 26 + 6
    assert all(source.startswith(("data:", "#")) for source in page.sources)
    assert not re.search(r"url\((?!#)|@import|<script|<link", text)
    visible = " ".join(" ".join(page.texts).split())
    for part in ("they say nothing about photographs", "Captions for pictures", "Finding the picture", "Finding the caption",
                 "How it learned", "Noto Color Emoji", torch.__version__):  # fmt: skip
        assert part in visible


def test_terminal_names_the_page_and_the_numbers(first: tuple[Path, Result]) -> None:
    output, result = first
    plain = result.output.replace("\n", "")
    assert str(output / "report.html") in plain
    assert "[3/7]" in plain
    assert "by chance" in plain


def test_model_folder_holds_the_trained_model(first: tuple[Path, Result]) -> None:
    model = BlipPretrain.from_pretrained(first[0] / "model")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(first[0] / "model", local_files_only=True)
    assert model.queue_ptr.item() == 4 * BATCH_SIZE % model.config.queue_size  # trained for the four steps
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.bos_token_id == model.config.dec_token_id
    BlipCaptioner.from_pretrained(first[0] / "model")


def test_hostile_captions_are_escaped() -> None:
    result = run_demo(1, 0, torch.device("cpu"), lambda report, steps, log: None)
    attack = "<script>alert('x')</script>\" onload=\"alert(1)"
    records = [*result.test_pairs.records]
    records[0] = PairRecord(records[0].image, attack, "<b>id</b>")
    result.test_pairs.records = records
    hostile = dataclasses.replace(result, captions=[attack, *result.captions[1:]])
    text = demo_page(hostile, {"device": "<img src=x onerror=alert(1)>"})
    page = Page(text)
    assert "script" not in page.tags
    assert "x" not in page.sources
    assert "&lt;script&gt;" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps"),
        (["--seed", "-1"], "--seed"),
        (["--device", "nonsense"], "nonsense"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--backend", "nonsense"], "nonsense"),
    ],
)
def test_bad_options_are_named(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = invoke(tmp_path, *arguments)
    assert result.exit_code == 2
    assert message in result.output
