"""ROC-AUC against counting all pairs."""

from __future__ import annotations

import itertools

import pytest
import torch

from blip_fast.tasks.metrics.filtering import roc_auc


def test_area_is_the_share_of_pairs_in_the_right_order():
    torch.manual_seed(0)
    scores, right = torch.randint(0, 7, (60,)).double(), torch.rand(60) < 0.3
    pairs = list(itertools.product(scores[right].tolist(), scores[~right].tolist()))
    expected = sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)
    assert roc_auc(scores, right) == pytest.approx(expected)
    assert roc_auc(torch.tensor([0.1, 0.9]), torch.tensor([False, True])) == 1
    assert roc_auc(torch.ones(5), torch.arange(5) < 2) == 0.5


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="expected some of each"):
        roc_auc(torch.ones(3), torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="NaN"):
        roc_auc(torch.tensor([float("nan"), 1.0]), torch.tensor([True, False]))
    with pytest.raises(ValueError, match="expected"):
        roc_auc(torch.ones(3), torch.ones(4, dtype=torch.bool))
