"""`blip-fast convert` between all formats."""

from __future__ import annotations

from pathlib import Path

import torch
from click.testing import CliRunner, Result

from blip_fast.cli import main
from tests.checkpoints.common import CLASSES, assert_same_state, build, small_tokenizer


def convert(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["convert", *map(str, arguments)])


def test_there_and_back(tmp_path: Path) -> None:
    model = build("vqa", text_heads=2)
    model.save_pretrained(tmp_path / "a", tokenizer=small_tokenizer())
    for source, target, format in (("a", "b", "hf"), ("b", "c", "safetensors"), ("c", "d.pth", "published")):
        result = convert(tmp_path / source, tmp_path / target, "--to", format)
        assert result.exit_code == 0, result.output
        assert "BlipVQA" in result.output
        assert "left out" not in result.output
        assert_same_state(CLASSES["vqa"].from_pretrained(tmp_path / target), model)
    for folder in ("b", "c"):
        assert (tmp_path / folder / "tokenizer.json").exists()


def test_part_of_a_pretrained_model(tmp_path: Path) -> None:
    torch.save({"model": build("pretrain").state_dict()}, tmp_path / "pretrain.pth")
    result = convert(tmp_path / "pretrain.pth", tmp_path / "itm", "--to", "hf", "--head", "itm")
    assert result.exit_code == 0, result.output
    assert f"left out of {tmp_path / 'pretrain.pth'}: " in result.output
    assert "'temp' first" in result.output
    itm = CLASSES["itm"].from_pretrained(tmp_path / "itm")
    assert torch.equal(itm.text_proj.weight, build("pretrain").text_proj.weight)


def test_refusals_are_one_sentence(tmp_path: Path) -> None:
    torch.save({"model": build("pretrain").state_dict()}, tmp_path / "pretrain.pth")
    for arguments, message in (
        ((tmp_path / "pretrain.pth", tmp_path / "x", "--to", "hf"), "transformers has no class for BlipPretrain"),
        ((tmp_path / "pretrain.pth", tmp_path / "x", "--to", "safetensors", "--head", "nlvr"), "lacks 4 tensors of"),
        ((tmp_path / "none.pth", tmp_path / "x", "--to", "hf"), "there is no"),
    ):
        result = convert(*arguments)
        assert result.exit_code == 1
        assert result.output.startswith("Error: ")
        assert message in result.output
        assert result.output.count("\n") == 1
    assert not (tmp_path / "x").exists()
