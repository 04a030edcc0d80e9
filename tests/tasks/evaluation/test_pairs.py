from __future__ import annotations

import pytest
import torch

from blip_fast.tasks.evaluation.pairs import recall_at, recalls, target_ranks


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
