"""Answers as strings, generated and ranked, with their log-probabilities."""

from __future__ import annotations

import functools

import pytest
import torch

from blip_fast import models, reference
from blip_fast.data.tokens import cached_tokenizer, tokenize
from blip_fast.reference.text import with_first_token
from tests.models.common import pair

pytest.importorskip("blip_fast.data.tokenizer", exc_type=ImportError)
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
QUESTIONS = ["is it a cat?", "how many dogs run along the beach?", "what is red?"]
ANSWERS = ["yes", "two of them", "no", "a red bus"]


@functools.cache
def vqa() -> models.BlipVQA:
    return pair(models.BlipVQA, models.BlipVQA, vocab_size=30524, text_layers=1, vit_depth=1)[0].eval()


def teacher_forced(ids: torch.Tensor, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Log-probabilities of the tokens behind the first."""
    ids = with_first_token(ids, vqa().config.dec_token_id)
    with torch.no_grad():
        logits = vqa().text_decoder(ids, torch.ones_like(ids), states, mask)
    return logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[0, :, 0]


def test_answers():
    scored = vqa().answer(IMAGES, QUESTIONS, max_length=6, return_scores=True)
    assert [one.text for one in scored] == vqa().answer(IMAGES, QUESTIONS, max_length=6)
    question_ids, mask = tokenize(QUESTIONS, "question")
    with torch.no_grad():
        states = vqa().question_states(IMAGES, question_ids, mask)
    for row, one in enumerate(scored):
        ids = torch.tensor([[101, *one.token_ids]])
        expected = teacher_forced(ids, states[row : row + 1], None)  # padding is attended, as published
        torch.testing.assert_close(torch.tensor(one.token_logprobs), expected, rtol=1e-4, atol=1e-4)
    drawn = vqa().answer(IMAGES, QUESTIONS, max_length=6, do_sample=True, seed=1, num_return_sequences=2)
    assert len(drawn) == 6


def test_ranking():
    scored = vqa().rank(IMAGES, QUESTIONS, ANSWERS, return_scores=True)
    assert [one.text for one in scored] == vqa().rank(IMAGES, QUESTIONS, ANSWERS)
    question_ids, mask = tokenize(QUESTIONS, "question")
    with torch.no_grad():
        states = vqa().question_states(IMAGES, question_ids, mask)
    for row, one in enumerate(scored):
        ids = torch.tensor([cached_tokenizer()(one.text).input_ids])
        assert one.token_ids == ids[0, 1:].tolist()
        expected = teacher_forced(ids, states[row : row + 1], mask[row : row + 1])
        torch.testing.assert_close(torch.tensor(one.token_logprobs), expected, rtol=1e-4, atol=1e-4)
        assert one.score == pytest.approx(float(expected.mean()), rel=1e-3)


def test_ranking_takes_pad_tokens_for_no_targets(plan):
    plain = reference.BlipVQA(vqa().config).eval()
    plain.load_state_dict(vqa().state_dict())
    candidates = torch.tensor([[101, 7, 0, 8, 102], [101, 7, 9, 102, 0]])
    answers = candidates, torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
    questions = tokenize(QUESTIONS, "question")
    expected = plain.rank_ids(IMAGES, *questions, *answers)
    torch.testing.assert_close(vqa().rank_ids(IMAGES, *questions, *answers).scores, expected.scores)
