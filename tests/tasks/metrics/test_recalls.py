"""Recalls against a transcription of their definition, ties, NaN and shapes."""

from __future__ import annotations

import pytest
import torch

from blip_fast.tasks.metrics.recalls import image_ranks, retrieval_metrics, text_ranks

IMAGE_OF_TEXT = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 11])


def by_sorting(scores: torch.Tensor, right: list[list[int]], k: int) -> float:
    order = scores.argsort(dim=1, descending=True).tolist()
    return 100 * sum(bool(set(row[:k]) & set(own)) for row, own in zip(order, right, strict=True)) / len(right)


@pytest.fixture
def scores() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    right = (torch.arange(12)[:, None] == IMAGE_OF_TEXT).float()
    return torch.randn(12, 16, generator=generator) + right, torch.randn(16, 12, generator=generator) + right.t()


def test_published_numbers(scores: tuple[torch.Tensor, torch.Tensor]) -> None:
    i2t, t2i = scores
    texts = [(image == IMAGE_OF_TEXT).nonzero()[:, 0].tolist() for image in range(12)]
    images = [[image] for image in IMAGE_OF_TEXT.tolist()]
    found = retrieval_metrics(i2t, t2i, IMAGE_OF_TEXT)
    for k in (1, 5, 10):
        assert found[f"txt_r{k}"] == pytest.approx(by_sorting(i2t, texts, k))
        assert found[f"img_r{k}"] == pytest.approx(by_sorting(t2i, images, k))
    assert found["txt_r_mean"] == pytest.approx((found["txt_r1"] + found["txt_r5"] + found["txt_r10"]) / 3)
    assert found["r_mean"] == pytest.approx((found["txt_r_mean"] + found["img_r_mean"]) / 2)
    names = "txt_r1 txt_r5 txt_r10 txt_r_mean img_r1 img_r5 img_r10 img_r_mean r_mean"
    assert list(found) == names.split()


def test_videos_have_a_median_rank() -> None:
    t2v = torch.tensor([[3.0, 2.0, 1.0, 0.0], [3.0, 2.0, 1.0, 0.0], [1.0, 2.0, 3.0, 0.0], [3.0, 2.0, 1.0, 0.0]])
    found = retrieval_metrics(torch.eye(4), t2v, torch.arange(4), item="vid")
    assert found["vid_mdR"] == 1.5  # ranks 1, 2, 1, 4
    assert found["vid_r1"] == 50.0
    assert found["txt_r1"] == 100.0
    assert list(found)[4:] == ["vid_r1", "vid_r5", "vid_r10", "vid_r_mean", "vid_mdR", "r_mean"]


def test_ranks() -> None:
    right = torch.tensor([0, 0, 1])
    assert text_ranks(torch.tensor([[1.0, 4.0, 5.0], [9.0, 2.0, 2.0]]), right).tolist() == [1, 2]
    assert image_ranks(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), right).tolist() == [0, 1, 1]


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_the_same_answer_to_everything_earns_nothing(value: float) -> None:
    scores = torch.full((20, 20), value)
    found = retrieval_metrics(scores, scores, torch.arange(20))
    assert set(found.values()) == {0.0}


def test_errors() -> None:
    with pytest.raises(ValueError, match="image 1 has no text"):
        text_ranks(torch.zeros(2, 2), torch.tensor([0, 0]))
    with pytest.raises(ValueError, match=r"scores has shape \(2, 2\) for 3 texts"):
        text_ranks(torch.zeros(2, 2), torch.tensor([0, 0, 1]))
    with pytest.raises(ValueError, match=r"scores has shape \(3,\) for 3 texts"):
        text_ranks(torch.zeros(3), torch.tensor([0, 0, 1]))
    with pytest.raises(ValueError, match="image_of_text names images 0 to 2; expected 0 to 1"):
        image_ranks(torch.zeros(2, 2), torch.tensor([0, 2]))
