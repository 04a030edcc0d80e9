"""How well scores tell right from wrong."""

from __future__ import annotations

import torch
from torch import Tensor


def roc_auc(scores: Tensor, right: Tensor) -> float:
    """Area under the ROC curve: how likely a right sample has a higher score than a wrong one; ties count half.

    Args:
        scores: (N,) numbers.
        right: (N,) bool.

    Raises ValueError where shapes differ, a score is NaN, or one kind is missing.
    """
    if scores.shape != right.shape or scores.ndim != 1:
        raise ValueError(
            f"scores has shape {tuple(scores.shape)} and right {tuple(right.shape)}; expected (N,) for both"
        )
    if bool(scores.isnan().any()):
        raise ValueError("scores holds NaN; expected numbers")
    positives, negatives = scores[right], scores[~right]
    if not len(positives) or not len(negatives):
        raise ValueError(f"right has {len(positives)} right and {len(negatives)} wrong samples; expected some of each")
    ordered = negatives.sort().values
    below = torch.searchsorted(ordered, positives, right=False) + torch.searchsorted(ordered, positives, right=True)
    return float(below.double().mean() / (2 * len(negatives)))
