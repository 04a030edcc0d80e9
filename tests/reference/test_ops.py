"""The reference operations by themselves: gradients in float64, edges, in-place semantics."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from blip_fast.reference import (
    contrastive_loss,
    draw_hard_negatives,
    enqueue_,
    hard_negative_weights,
    momentum_update_,
)


def features(*shape: int, seed: int, dim: int = -1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=dim)


def contrastive_inputs() -> list[torch.Tensor]:
    online = [features(3, 6, seed=seed) for seed in (0, 1)]
    momentum = [features(3, 6, seed=seed) for seed in (2, 3)]
    return [
        *online,
        *momentum,
        features(6, 5, seed=4, dim=0),
        features(6, 5, seed=5, dim=0),
        torch.tensor(0.3).double(),
    ]


@pytest.mark.parametrize("with_ids", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_contrastive_gradients(alpha: float, with_ids: bool) -> None:
    """All three results pass gradcheck for the online features and the temperature; the rest is constant.

    The momentum targets are constants as well, so the temperature is only checked where they have no weight.
    """
    inputs = contrastive_inputs()
    ids = (torch.tensor([1, 2, 1]), torch.tensor([[-100, 2, 3, 1, -100]])) if with_ids else (None, None)

    def function(
        image_feat: torch.Tensor, text_feat: torch.Tensor, temp: torch.Tensor = inputs[6]
    ) -> tuple[torch.Tensor, ...]:
        return contrastive_loss(image_feat, text_feat, *inputs[2:6], temp, alpha, *ids)

    checked = (0, 1, 6) if alpha == 0.0 else (0, 1)
    assert torch.autograd.gradcheck(function, [inputs[index].clone().requires_grad_() for index in checked])
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    contrastive_loss(*leaves, alpha, *ids)[0].backward()
    assert [leaf.grad is not None for leaf in leaves] == [True, True, False, False, False, False, True]


def test_contrastive_needs_both_ids() -> None:
    with pytest.raises(ValueError, match="ids and queue_ids belong together"):
        contrastive_loss(*contrastive_inputs(), 0.4, ids=torch.arange(3))


def test_negative_weights_exclude_partners() -> None:
    sims = torch.randn(4, 4)
    for weights in hard_negative_weights(sims, sims.t()):
        assert (weights.diagonal() == 0).all()
        assert (weights.fill_diagonal_(1) > 0).all()
    ids = torch.tensor([1, 2, 1, 3])
    for weights in hard_negative_weights(sims, sims.t(), ids, epsilon=0.0):
        assert torch.equal(weights == 0, ids[:, None] == ids[None, :])


def test_draws_follow_the_weights() -> None:
    torch.manual_seed(0)
    weights = torch.tensor([[0.0, 3.0, 1.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    counts = torch.zeros(3, 3)
    for _ in range(400):
        drawn = draw_hard_negatives(weights, weights)
        counts[torch.arange(3), drawn.text_for_image] += 1
    assert torch.equal(counts[1:], torch.tensor([[0.0, 0.0, 400.0], [400.0, 0.0, 0.0]]))
    assert counts[0, 0] == 0
    assert 260 < counts[0, 1] < 340


def test_row_without_candidate_keeps_its_partner() -> None:
    weights = torch.zeros(2, 6)
    for first_row in (0, 2, 4):
        drawn = draw_hard_negatives(weights, weights, first_row)
        assert drawn.image_for_text.tolist() == drawn.text_for_image.tolist() == [first_row, first_row + 1]


def test_momentum_update() -> None:
    params = [torch.randn(3, 2), torch.randn(5)]
    params_m = [torch.randn(3, 2), torch.randn(5)]
    expected = [m * 0.9 + p * 0.1 for m, p in zip(params_m, params, strict=True)]
    momentum_update_(params_m, params, 0.9)
    torch.testing.assert_close(params_m, expected)
    with pytest.raises(ValueError):
        momentum_update_(params_m, params[:1], 0.9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize(
    ("size", "count", "start"), [(8, 3, 0), (8, 3, 6), (8, 8, 5), (5, 12, 3), (7, 7, 0), (4, 0, 2)]
)
def test_enqueue_is_a_ring(size: int, count: int, start: int, dtype: torch.dtype) -> None:
    queue = torch.arange(2 * size).view(2, size).to(dtype)
    rows = torch.arange(100, 100 + 2 * count).view(count, 2)
    expected, pointer = queue.clone(), torch.tensor([start])
    for index, row in enumerate(rows):
        expected[:, (start + index) % size] = row.to(dtype)
    enqueue_(queue, rows, pointer)
    assert torch.equal(queue, expected)
    assert pointer.tolist() == [(start + count) % size]


def test_enqueue_checks_the_width() -> None:
    with pytest.raises(ValueError, match="features have width 3; the queue"):
        enqueue_(torch.zeros(2, 4), torch.zeros(1, 3), torch.zeros(1, dtype=torch.long))
