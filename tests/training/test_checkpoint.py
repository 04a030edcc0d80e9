from __future__ import annotations

from pathlib import Path

import pytest
import torch

from blip_fast.data.tokenizer import load_tokenizer, restrict_vocabulary
from blip_fast.training.checkpoint import load_model_folder, save_model_folder, write_atomically


def test_a_model_folder_comes_back_as_it_was(tmp_path: Path) -> None:
    tokenizer = restrict_vocabulary(load_tokenizer(), ["a red cat"])
    weight = torch.randn(3, 2)
    save_model_folder(tmp_path / "model", {"a": weight, "tied": weight}, {"text_width": 8}, tokenizer, epoch=4)
    state, config, loaded = load_model_folder(tmp_path / "model")
    assert torch.equal(state["a"], weight)
    assert state["a"].data_ptr() == state["tied"].data_ptr()
    assert config == {"text_width": 8}
    assert loaded("a red cat [ENC]").input_ids == tokenizer("a red cat [ENC]").input_ids
    assert loaded.bos_token_id == tokenizer.bos_token_id


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")

    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(target, fail)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert target.read_text() == "old"
