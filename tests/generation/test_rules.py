"""When a beam search ends, what it counts as finished, and which tokens the repetition penalty means."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from blip_fast import reference
from blip_fast.generation.beam import rank_candidates
from blip_fast.generation.hypotheses import Candidate, ImageSearch
from blip_fast.generation.prompts import Prompts
from blip_fast.generation.texts import Limits, Texts
from blip_fast.reference.generation import process_scores

END, WORD = 102, 7
LIMITS = Limits(max_length=9, min_length=0, repetition_penalty=1.5, eos_token_id=END, pad_token_id=0)
TEXTS = Texts.begin(Prompts(torch.tensor([[3, 4], [5, 6]]), torch.tensor([2, 2])), LIMITS)


def ranked(*scores_and_tokens: tuple[float, int]) -> list[Candidate]:
    return [Candidate(score, token, -0.1, 0, rank) for rank, (score, token) in enumerate(scores_and_tokens)]


def advance(search: ImageSearch, *scores_and_tokens: tuple[float, int]) -> list[int]:
    return [candidate.rank for candidate in search.advance(ranked(*scores_and_tokens), TEXTS, LIMITS)]


@pytest.mark.parametrize(("norm", "closed"), [("published", False), ("generated", True)])
def test_what_may_still_be_reached(norm, closed):
    """The best candidate as published; as in transformers the best that goes on, as an end reaches no more."""
    search = ImageSearch(2, 0, norm)
    search.length = 0 if norm == "generated" else 1  # either norm divides by 1 at first
    advance(search, (-2.0, END), (-2.2, WORD), (-2.4, WORD), (-2.5, WORD))
    assert not search.closed
    search.length -= 1
    assert advance(search, (-1.0, END), (-3.0, WORD), (-3.1, WORD), (-3.2, WORD)) == [1, 2]
    assert sorted(found.score for found in search.found) == [-2.0, -1.0]
    assert search.closed == closed


def test_an_equal_score_is_out_of_reach():
    search = ImageSearch(2, 0, "published")
    search.length = 1
    advance(search, (-1.0, END), (-2.0, END), (-2.0, WORD), (-3.0, WORD))
    assert not search.closed
    search.length = 1
    advance(search, (-2.0, WORD), (-2.5, WORD), (-2.6, WORD), (-2.7, WORD))
    assert search.closed


def test_ends_of_low_rank_do_not_count():
    search = ImageSearch(2, 0, "published")
    search.length = 1
    assert advance(search, (-1.0, WORD), (-1.1, WORD), (-1.2, END), (-1.3, WORD)) == [0, 1]
    assert search.found == []


@pytest.mark.parametrize(("norm", "kept"), [("published", [-1.5, -1.0]), ("generated", [-1.0])])
def test_which_beams_count_at_the_length_limit(norm, kept):
    search = ImageSearch(2, 0, norm)
    search.length = 1
    first, _, third, _ = ranked((-1.0, WORD), (-1.1, END), (-1.5, WORD), (-2.0, WORD))
    search.cut_off([first, third], TEXTS, 0)
    assert sorted(found.score for found in search.found) == kept
    assert search.closed


def test_of_equal_texts_the_first_is_kept():
    search = ImageSearch(1, 1, "published")
    for row in (0, 1):
        search.cut_off([Candidate(-1.0, WORD, -0.1, row, 0)], TEXTS, row)
    assert [found.row for found in search.found] == [0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_candidates_are_those_of_all_log_probabilities(dtype, penalty):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(2, 40, generator=generator) * 3).to(dtype)
    running = torch.tensor([[-1.0, -1.5]])
    limits = replace(LIMITS, repetition_penalty=penalty)
    (got,) = rank_candidates(logits, TEXTS, running, limits, 4)
    plain = reference.generation.Limits(9, 0, END, 0, repetition_penalty=penalty)
    exact = logits.float().log_softmax(1)
    processed = process_scores(exact, TEXTS.ids[:, :2], plain)
    (expected,) = reference.generation.rank_candidates(processed, running)
    assert [(candidate.token, candidate.row) for candidate in got] == [(beam.token, beam.row) for beam in expected]
    assert [candidate.rank for candidate in got] == [0, 1, 2, 3]
    for candidate, beam in zip(got, expected, strict=True):
        assert candidate.score == pytest.approx(beam.score, rel=1e-5)
        assert candidate.logprob == pytest.approx(exact[beam.row, beam.token].item(), rel=1e-5)


def test_the_penalty_means_what_a_text_says():
    texts = Texts.begin(Prompts(torch.tensor([[3, 4], [5, 0]]), torch.tensor([2, 1])), LIMITS)
    scores = torch.linspace(-1, 2, 20).repeat(2, 1) + 0.01
    got = texts.allowed(scores.clone(), LIMITS)
    limits = reference.generation.Limits(9, 0, END, 0, repetition_penalty=1.5)
    for row, said in enumerate(([3, 4], [5])):
        expected = process_scores(scores[row : row + 1], torch.tensor([said]), limits)
        assert torch.equal(got[row : row + 1], expected)
