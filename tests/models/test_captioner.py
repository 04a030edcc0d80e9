"""Captions as strings: prompts, scores, and their ids."""

from __future__ import annotations

import functools

import pytest
import torch

from blip_fast import models, reference
from blip_fast.data.tokens import PROMPT, cached_tokenizer
from blip_fast.generation import Generated
from tests.models.common import pair

pytest.importorskip("blip_fast.data.tokenizer", exc_type=ImportError)
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@functools.cache
def captioner() -> models.BlipCaptioner:
    model = models.BlipCaptioner
    return pair(model, model, vocab_size=30524, text_layers=1, vit_depth=1)[0].eval()


def test_the_prompt_is_cut_off():
    ids = captioner().generate_ids(IMAGES, torch.tensor(cached_tokenizer()(PROMPT).input_ids), max_length=9)
    texts = cached_tokenizer().batch_decode(ids, skip_special_tokens=True)
    assert captioner().generate(IMAGES, max_length=9) == [text[len(PROMPT) :] for text in texts]
    bare = captioner().generate(IMAGES, "", max_length=9)
    ids = captioner().generate_ids(IMAGES, torch.tensor([101, 102]), max_length=9)
    assert bare == cached_tokenizer().batch_decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("prompt", ["a picture of", "a picture of ", "", "two"])
def test_prompts_are_cut_off_as_published(prompt):
    plain = reference.BlipCaptioner(captioner().config).eval()
    plain.load_state_dict(captioner().state_dict())
    assert captioner().generate(IMAGES, prompt, max_length=9) == plain.generate(IMAGES, prompt, max_length=9)


def test_a_prompt_for_each_image():
    prompts = ["a picture of ", "", "A Photo, taken of "]
    together = captioner().generate(IMAGES, prompts, max_length=12)
    alone = [captioner().generate(IMAGES[i : i + 1], prompt, max_length=12)[0] for i, prompt in enumerate(prompts)]
    assert together == alone
    assert not together[2].startswith(("taken", "of", "a photo"))
    with pytest.raises(ValueError, match="prompt has 2 texts for 3 images; expected one, or one per image"):
        captioner().generate(IMAGES, prompts[:2])


def test_scores():
    options = dict(num_beams=3, max_length=9, num_return_sequences=2)
    scored = captioner().generate(IMAGES, return_scores=True, **options)
    assert [one.text for one in scored] == captioner().generate(IMAGES, **options)
    assert len(scored) == 6
    for one in scored:
        assert isinstance(one, Generated)
        assert len(one.token_ids) == len(one.token_logprobs) <= 5
        assert one.score == pytest.approx(sum(one.token_logprobs) / len(one.token_logprobs), rel=1e-5)
        text = cached_tokenizer().decode(one.token_ids, skip_special_tokens=True)
        assert text.replace(" ", "") == one.text.replace(" ", "").replace("##", "") or "##" in text
