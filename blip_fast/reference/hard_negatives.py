"""Hard negatives for image-text matching: wrong partners that the contrastive features find similar."""

from __future__ import annotations

import torch
from torch import Tensor

from blip_fast.outputs import Negatives


@torch.no_grad()
def hard_negative_weights(
    sim_i2t: Tensor,
    sim_t2i: Tensor,
    ids: Tensor | None = None,
    candidate_ids: Tensor | None = None,
    epsilon: float = 1e-4,
) -> tuple[Tensor, Tensor]:
    """Sampling weights ``softmax(similarity) + epsilon``, zero where image and text belong together.

    Args:
        sim_i2t, sim_t2i: (B, N) similarities over temp to N candidates; the first B are the batch unless ids are given.
        ids: (B,) image ids; candidates of equal id are excluded. None: the diagonal is.
        candidate_ids: (N,) ids of the candidates; None means ``ids`` (the candidates are the batch).
        epsilon: keeps very dissimilar pairs possible; pre-training uses 1e-4, retrieval 0.

    Returns:
        weights_i2t (texts for each image) and weights_t2i (images for each text), (B, N) each.
    """
    weights_i2t = sim_i2t.softmax(dim=1) + epsilon
    weights_t2i = sim_t2i.softmax(dim=1) + epsilon
    if ids is None:
        return weights_i2t.fill_diagonal_(0), weights_t2i.fill_diagonal_(0)
    others = ids if candidate_ids is None else candidate_ids
    together = ids.view(-1, 1) == others.view(1, -1)
    return weights_i2t.masked_fill_(together, 0), weights_t2i.masked_fill_(together, 0)


def draw_hard_negatives(weights_i2t: Tensor, weights_t2i: Tensor, first_row: int = 0) -> Negatives:
    """Draw one candidate per row, row by row from torch's generator, as published: first an image for each text.

    A row without any candidate (a batch of one, or only equal ids) keeps its own partner: candidate ``first_row + b``,
    where ``first_row`` is the position of the batch among the candidates. Returns int64 indices, (B,) each.
    """
    image_for_text = [draw_row(row, first_row + index) for index, row in enumerate(weights_t2i)]
    text_for_image = [draw_row(row, first_row + index) for index, row in enumerate(weights_i2t)]
    device = weights_i2t.device
    return Negatives(torch.tensor(image_for_text, device=device), torch.tensor(text_for_image, device=device))


def draw_row(weights: Tensor, without_candidate: int) -> int:
    """One index drawn in proportion to ``weights`` (N,), or ``without_candidate`` when all are zero."""
    if not bool(weights.any()):
        return without_candidate
    return int(torch.multinomial(weights, 1).item())
