"""Draws: their distribution, their seeds, and the nucleus of the published code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from blip_fast.generation import sampling
from blip_fast.generation.sampling import draw, image_seeds
from blip_fast.reference.generation import nucleus_probabilities
from tests.generation.common import IMAGES, PROMPTS, captioner

LOGITS = torch.randn(1, 60, generator=torch.Generator().manual_seed(2)) * 2


def frequencies(top_k: int, top_p: float, temperature: float) -> torch.Tensor:
    """Share of each token among draws by evenly spaced numbers: exact to their spacing."""
    numbers = (torch.arange(20000) + 0.5) / 20000
    tokens = draw(LOGITS.expand(20000, -1), numbers, top_k, top_p, temperature)
    return tokens.bincount(minlength=60) / 20000


@pytest.mark.parametrize(("top_k", "top_p"), [(50, 0.9), (0, 0.9), (5, 1.0), (60, 0.5), (60, 1e-6)])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_distribution(top_k, top_p, temperature):
    expected = nucleus_probabilities(LOGITS / temperature, top_p, top_k)[0]
    actual = frequencies(top_k, top_p, temperature)
    assert torch.equal(actual > 0, expected > 1 / 20000) or (actual - expected).abs().max() < 1e-4
    torch.testing.assert_close(actual, expected, rtol=0, atol=1.1e-4)


def test_no_limits():
    torch.testing.assert_close(frequencies(0, 1.0, 1.0), LOGITS.softmax(-1)[0], rtol=0, atol=1.1e-4)
    assert draw(LOGITS, torch.tensor([1 - 2.0**-24]), 0, 1.0, 1.0).item() in range(60)


def test_the_nucleus_goes_on_where_it_is_reached_exactly():
    assert draw(torch.zeros(1, 2), torch.tensor([0.9]), 0, 0.5, 1.0).item() == 1


def test_more_best_tokens_than_there_are():
    assert draw(torch.zeros(1, 2), torch.tensor([0.9]), 3, 1.0, 1.0).item() == 1


def test_every_token_has_a_number_of_its_own(monkeypatch):
    numbers = []
    monkeypatch.setattr(
        sampling, "draw", lambda scores, drawn, *rest: numbers.append(drawn) or draw(scores, drawn, *rest)
    )
    captioner().generate_ids(
        IMAGES, PROMPTS, do_sample=True, seed=5, num_return_sequences=4, min_length=12, max_length=12
    )
    assert torch.cat(numbers).unique().numel() == 4 * sum(12 - length for length in (3, 2, 5))


def test_texts_follow_the_distribution():
    """First words of many texts of one image: a chi-square test at a fixed seed."""
    count = 2000
    options = dict(do_sample=True, top_k=8, top_p=1.0, repetition_penalty=1.0, min_length=0, max_length=5, seed=11)
    ids = captioner().generate_ids(IMAGES[:1], PROMPTS[0][:4], num_return_sequences=count, **options)
    with torch.no_grad():
        start = ids[:1, :3]
        logits = captioner().text_decoder(start, torch.ones_like(start), captioner().visual_encoder(IMAGES[:1]))
    expected = nucleus_probabilities(logits[:, -1], 1.0, 8)[0] * count
    observed = ids[:, 3].bincount(minlength=300)
    assert (observed[expected == 0] == 0).all()
    kept = expected > 5
    statistic = ((observed - expected)[kept] ** 2 / expected[kept]).sum()
    assert statistic < 26.1  # 0.1 % of the distribution with 8 degrees of freedom lies above


def test_seeds():
    options = dict(do_sample=True, temperature=2.0, num_return_sequences=3)
    one = captioner().generate_ids(IMAGES, PROMPTS, seed=5, **options)
    assert torch.equal(one, captioner().generate_ids(IMAGES, PROMPTS, seed=5, **options))
    assert torch.equal(one, captioner().generate_ids(IMAGES, PROMPTS, seed=[5, 6, 7], **options))
    assert not torch.equal(one, captioner().generate_ids(IMAGES, PROMPTS, seed=6, **options))
    turned = captioner().generate_ids(IMAGES.flip(0), PROMPTS.flip(0), seed=[7, 6, 5], **options)
    assert torch.equal(turned.view(3, 3, -1).flip(0), one.view(3, 3, -1))
    assert len({tuple(row) for row in one.tolist()}) > 3
    torch.manual_seed(0)
    first = captioner().generate_ids(IMAGES, PROMPTS, **options)
    assert not torch.equal(first, captioner().generate_ids(IMAGES, PROMPTS, **options))
    torch.manual_seed(0)
    assert torch.equal(first, captioner().generate_ids(IMAGES, PROMPTS, **options))
    assert image_seeds(3, 2).tolist() == [3, 4]


def test_seeds_are_64_bits_of_any_kind_of_integer():
    assert torch.equal(image_seeds(np.int64(3), 2), torch.tensor([3, 4]))
    assert torch.equal(image_seeds(torch.tensor(3), 2), torch.tensor([3, 4]))
    assert torch.equal(image_seeds([2**63, 2**64 - 1], 2), torch.tensor([-(2**63), -1]))
