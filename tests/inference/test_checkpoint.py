"""Which model a command takes when none is named: the published one, else the demo's, and it says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from blip_fast.checkpoints import sources
from blip_fast.cli import main
from blip_fast.inference.checkpoint import choose_checkpoint, load_model
from blip_fast.inference.page_models import PageModels
from blip_fast.models import BlipCaptioner, BlipVQA
from tests.inference.common import build, picture, save


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder on a machine without network."""

    def unreachable(address: str) -> Path:
        raise OSError(f"no route to {address}")

    monkeypatch.setattr(sources, "_download", unreachable)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_the_demos_model_serves_and_is_named(offline: Path) -> None:
    picture(offline / "a.png")
    save(offline / "demo" / "model", "BlipPretrain")
    result = run("caption", "a.png", "--quiet")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["image"] == "a.png"
    assert result.stderr.startswith(
        "no checkpoint is given and the published model_base_caption_capfilt_large could not be"
    )
    assert "using demo/model" in result.stderr
    assert "model_base_retrieval_coco could not be fetched: using demo/model" in run("match", "a.png", "a cat").stderr
    refused = run("vqa", "a.png", "is it red?")
    assert refused.exit_code == 1
    assert "demo/model is a checkpoint of BlipPretrain and has not learned to answer questions" in refused.stderr


def test_the_published_one_comes_first(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build("BlipPretrain").save_pretrained(offline / "demo" / "model")
    monkeypatch.setattr(sources, "_download", lambda address: Path(address.rsplit("/", 1)[1]))
    assert choose_checkpoint("caption", None) == ("model_base_caption_capfilt_large.pth", None)
    assert choose_checkpoint("caption", "other.pth") == ("other.pth", None)


def test_nothing_to_work_with(offline: Path) -> None:
    picture(offline / "a.png")
    result = run("caption", "a.png")
    assert result.exit_code == 1
    assert "no checkpoint is given, the published" in result.output
    assert "the model that `blip-fast demo` trains" in result.output


def test_a_vocabulary_without_the_prompt(offline: Path) -> None:
    from blip_fast.data.tokenizer import load_tokenizer, restrict_vocabulary

    picture(offline / "a.png")
    tokenizer = restrict_vocabulary(load_tokenizer(), ["red bus"])
    model = build("BlipPretrain", vocab_size=len(tokenizer))
    model.save_pretrained(offline / "demo" / "model", tokenizer=tokenizer)
    result = run("caption", "a.png", "--quiet")
    assert result.exit_code == 0, result.output
    assert "lacks the words of the usual prompt: captions are made without it" in result.stderr
    assert "lacks the words" not in run("caption", "a.png", "--quiet", "--prompt", "red ").stderr


def test_the_page_takes_for_each_task_the_first_that_serves_it(offline: Path) -> None:
    pretrained, vqa = save(offline / "a", "BlipPretrain"), save(offline / "b", "BlipVQA")
    models = PageModels.open([pretrained, vqa], torch.device("cpu"))
    assert (models.captioner.source, models.vqa.source, models.itm.source) == (pretrained, vqa, pretrained)
    assert PageModels.open([vqa], torch.device("cpu")).captioner.missing is not None
    assert "there is no demo/model" in str(PageModels.open([], torch.device("cpu")).vqa.missing)


def test_precision_and_training(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, "BlipPretrain")
    model = load_model(BlipCaptioner, checkpoint, torch.device("cpu"), "bf16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    with pytest.raises(ValueError, match="has not learned to answer questions; expected one of BlipVQA"):
        load_model(BlipVQA, checkpoint, torch.device("cpu"))
