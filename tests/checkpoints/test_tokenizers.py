"""A model of another vocabulary brings its tokenizer along, and texts as strings go through it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from blip_fast import models
from blip_fast.data.tokenizer import load_tokenizer, restrict_vocabulary
from tests.checkpoints.common import small_config, small_tokenizer

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
QUESTION, ANSWERS = "a cat of a dog", ["cat", "a dog"]


@pytest.mark.parametrize("format", ["safetensors", "hf"])
def test_saved_beside_the_weights(tmp_path: Path, format: str) -> None:
    model = models.BlipCaptioner(small_config()).eval()
    model.save_pretrained(tmp_path, format, tokenizer=small_tokenizer())
    loaded = models.BlipCaptioner.from_pretrained(tmp_path)
    prompt = torch.tensor(small_tokenizer()("a picture of ").input_ids)
    ids = loaded.generate_ids(IMAGES, prompt, max_length=9)
    expected = [text[len("a picture of ") :] for text in small_tokenizer().batch_decode(ids, skip_special_tokens=True)]
    assert loaded.generate(IMAGES, max_length=9) == expected
    loaded.save_pretrained(tmp_path / "copy")
    assert len(models.BlipCaptioner.from_pretrained(tmp_path / "copy").tokenizer) == 300


def test_answers_and_matches_are_tokenised_by_it(tmp_path: Path) -> None:
    vqa = models.BlipVQA(small_config()).eval()
    with pytest.raises(ValueError, match="the model has vocab_size=300 and no tokenizer"):
        vqa.answer(IMAGES, [QUESTION] * 2)
    vqa.tokenizer = small_tokenizer()
    assert len(vqa.answer(IMAGES, [QUESTION] * 2, max_length=4)) == 2
    assert set(vqa.rank(IMAGES, [QUESTION] * 2, ANSWERS)) <= set(ANSWERS)
    itm = models.BlipITM(small_config(max_position_embeddings=40)).eval()
    itm.save_pretrained(tmp_path, tokenizer=small_tokenizer())
    loaded = models.BlipITM.from_pretrained(tmp_path)
    tokens = small_tokenizer()(ANSWERS, padding="max_length", max_length=35, return_tensors="pt")
    assert torch.equal(loaded.itm(IMAGES, ANSWERS), loaded.itm(IMAGES, tokens.input_ids, tokens.attention_mask))


def test_blips_vocabulary_needs_none(tmp_path: Path) -> None:
    model = models.BlipITM(small_config(vocab_size=30524))
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()
    assert models.BlipITM.from_pretrained(tmp_path).tokenizer is model.tokenizer


def test_another_models_tokenizer_is_refused(tmp_path: Path) -> None:
    other = restrict_vocabulary(load_tokenizer(), ["a cat"])
    models.BlipITM(small_config()).save_pretrained(tmp_path, tokenizer=other)
    with pytest.raises(ValueError, match=rf"has {len(other)} entries; expected vocab_size=300"):
        _ = models.BlipITM.from_pretrained(tmp_path).tokenizer


@pytest.mark.parametrize("content", ["{}", "[1", None])
def test_a_damaged_tokenizer_is_named(tmp_path: Path, content: str | None) -> None:
    models.BlipITM(small_config()).save_pretrained(tmp_path, tokenizer=small_tokenizer())
    if content is None:
        (tmp_path / "tokenizer.json").unlink()
    else:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=rf"the tokenizer in {tmp_path} is damaged or incomplete"):
        _ = models.BlipITM.from_pretrained(tmp_path).tokenizer


def test_the_head_that_was_trained_is_known(tmp_path: Path) -> None:
    models.BlipPretrain(small_config()).save_pretrained(tmp_path)
    assert models.BlipCaptioner.from_pretrained(tmp_path).trained_head == "pretrain"
    assert models.BlipITM(small_config()).trained_head is None
