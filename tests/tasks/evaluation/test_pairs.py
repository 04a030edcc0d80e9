from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from blip_fast.models import BlipCaptioner, BlipITM, BlipPretrain
from blip_fast.reference.text import with_first_token
from blip_fast.tasks.evaluation.pairs import (
    caption_ids,
    encode_pairs,
    matching_logits,
    recall_at,
    recalls,
    retrieval_scores,
    target_ranks,
)
from tests.models.common import pair, texts


def brute_force_recall(scores: list[list[float]], k: int) -> float:
    hits = 0
    for row, values in enumerate(scores):
        best = sorted(range(len(values)), key=lambda column: values[column], reverse=True)[:k]
        hits += row in best
    return hits / len(scores)


@pytest.mark.parametrize("k", [1, 2, 5, 17])
def test_recall_agrees_with_sorting(k: int) -> None:
    scores = torch.randn(17, 17, generator=torch.Generator().manual_seed(k)) + torch.eye(17)
    assert recall_at(scores, k) == pytest.approx(brute_force_recall(scores.tolist(), k))
    assert recalls(scores)["img_r5"] == pytest.approx(brute_force_recall(scores.T.tolist(), 5))
    assert recalls(scores)["txt_r1"] == pytest.approx(brute_force_recall(scores.tolist(), 1))


def test_ranks_count_better_candidates() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.2], [0.5, 0.4, 0.3], [3.0, 2.0, 1.0]])
    assert target_ranks(scores).tolist() == [0, 1, 2]


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_constant_answers_earn_nothing(value: float) -> None:
    assert recall_at(torch.full((6, 6), value), 5) == 0.0


def test_scores_must_be_square() -> None:
    with pytest.raises(ValueError, match=r"scores has shape \(2, 3\)"):
        recall_at(torch.zeros(2, 3), 1)


class Pairs(list):
    """What `encode_pairs` reads of a data set."""

    encoder = SimpleNamespace(width=9)


def small_pairs() -> tuple[BlipPretrain, Pairs]:
    model = pair(BlipPretrain, BlipPretrain)[0].eval()
    ids, mask = texts(5, 9)
    images = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    tokens = [row[keep == 1].tolist() for row, keep in zip(ids, mask, strict=True)]
    return model, Pairs(SimpleNamespace(image=image, tokens=own) for image, own in zip(images, tokens, strict=True))


@torch.no_grad()
def test_scores_are_those_of_matching_and_cosine() -> None:
    model, pairs = small_pairs()
    ids, mask = texts(5, 9)
    encoded = encode_pairs(model, pairs, torch.device("cpu"), batch_size=2)
    assert torch.equal(encoded.input_ids, ids)
    assert torch.equal(encoded.attention_mask, mask)
    assert torch.equal(encoded.images, torch.stack([one.image for one in pairs]))
    cosines = encoded.image_features @ encoded.text_features.T
    torch.testing.assert_close(encoded.image_features.norm(dim=1), torch.ones(5))
    logits = matching_logits(model, encoded, model.config.enc_token_id)
    matching = BlipITM(model.config)
    matching.load_state_dict(model.state_dict(), strict=False)
    matching.eval()
    torch.testing.assert_close(cosines, matching.itc(encoded.images, ids, mask), rtol=1e-5, atol=1e-6)
    first = with_first_token(ids, model.config.enc_token_id)
    every = torch.arange(5).repeat_interleave(5)
    expected = matching.itm(encoded.images, first.repeat(5, 1), mask.repeat(5, 1), every).unflatten(0, (5, 5))
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(retrieval_scores(encoded, logits), expected[..., 1] + cosines, rtol=1e-5, atol=1e-6)


def test_captions_are_those_of_the_captioner() -> None:
    model, pairs = small_pairs()
    images = torch.stack([one.image for one in pairs])
    captioner = BlipCaptioner(model.config).eval()
    captioner.load_state_dict(model.state_dict(), strict=False)
    start = torch.tensor([model.config.dec_token_id])
    expected = captioner.generate_ids(images, start, num_beams=3, max_length=8, min_length=2)
    assert torch.equal(caption_ids(model, images, 8), expected)
    assert expected.shape[1] <= 8
