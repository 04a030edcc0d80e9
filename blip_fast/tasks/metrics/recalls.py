"""Recall of retrieval: how often the right candidate is among the first, in both directions."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

AT = (1, 5, 10)


def text_ranks(scores: Tensor, image_of_text: Tensor) -> Tensor:
    """Rank (I), 0 = best, of each image's best own text.

    A tie or a NaN counts against the right candidate: a model that answers the same to everything gets no credit.

    Args:
        scores: (I, T) scores of texts for each image.
        image_of_text: (T,) the image that each text belongs to.

    Raises ValueError where shapes differ or an image has no text.
    """
    _check(scores, image_of_text, texts_dim=1)
    own = image_of_text.to(scores.device) == torch.arange(len(scores), device=scores.device)[:, None]
    if not bool(own.any(1).all()):
        raise ValueError(f"image {int((~own.any(1)).nonzero()[0])} has no text; expected at least one for each image")
    best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
    return (~(scores < best) & ~own).sum(1)


def image_ranks(scores: Tensor, image_of_text: Tensor) -> Tensor:
    """Rank (T), 0 = best, of each text's image in scores (T, I); see :func:`text_ranks`."""
    _check(scores, image_of_text, texts_dim=0)
    right = scores.gather(1, image_of_text.to(scores.device)[:, None])
    return scores.shape[1] - 1 - (scores < right).sum(1)


def retrieval_metrics(
    scores_i2t: Tensor, scores_t2i: Tensor, image_of_text: Tensor, item: Literal["img", "vid"] = "img"
) -> dict[str, float]:
    """Published numbers in per cent: ``txt_r1, txt_r5, txt_r10, txt_r_mean, img_r1, ..., r_mean``.

    ``item="vid"`` names the second half after videos and adds ``vid_mdR``, the median rank counted from 1.

    Args:
        scores_i2t: (I, T), scores_t2i: (T, I).
        image_of_text: (T,) the image that each text belongs to.
    """
    ranks = {"txt": text_ranks(scores_i2t, image_of_text), item: image_ranks(scores_t2i, image_of_text)}
    metrics: dict[str, float] = {}
    for name, own in ranks.items():
        recalls = [100.0 * float((own < k).double().mean()) for k in AT]
        metrics |= {f"{name}_r{k}": recall for k, recall in zip(AT, recalls, strict=True)}
        metrics[f"{name}_r_mean"] = sum(recalls) / len(recalls)
    if item == "vid":
        metrics["vid_mdR"] = float((ranks[item] + 1).double().quantile(0.5))  # the middle of an even number: the mean
    metrics["r_mean"] = (metrics["txt_r_mean"] + metrics[f"{item}_r_mean"]) / 2
    return metrics


def _check(scores: Tensor, image_of_text: Tensor, texts_dim: int) -> None:
    images = scores.shape[1 - texts_dim] if scores.ndim == 2 else 0
    if scores.ndim != 2 or scores.shape[texts_dim] != len(image_of_text) or not scores.numel():
        raise ValueError(f"scores has shape {tuple(scores.shape)} for {len(image_of_text)} texts; expected (I, T) of "
                         "texts for images and (T, I) of images for texts")  # fmt: skip
    if int(image_of_text.min()) < 0 or int(image_of_text.max()) >= images:
        raise ValueError(f"image_of_text names images {int(image_of_text.min())} to {int(image_of_text.max())}; "
                         f"expected 0 to {images - 1}")  # fmt: skip
