"""Image-text contrastive loss with momentum keys, queues and soft targets (ALBEF, arXiv 2107.07651, equations 1 to 6)."""

from __future__ import annotations

import torch
from torch import Tensor


def contrastive_loss(
    image_feat: Tensor,
    text_feat: Tensor,
    image_feat_m: Tensor,
    text_feat_m: Tensor,
    image_queue: Tensor,
    text_queue: Tensor,
    temp: Tensor | float,
    alpha: Tensor | float,
    ids: Tensor | None = None,
    queue_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Contrastive loss of B pairs against B + Q momentum keys, in both directions.

    With keys k (momentum features of the batch, then the queue) and an online feature q, the loss of a row is
    ``-sum_j target_j log_softmax(q . k / temp)_j``; the target is ``alpha * softmax(q_m . k / temp)`` of the momentum
    feature plus ``(1 - alpha)`` spread evenly over the positives: the row's own pair, or all keys of equal id.

    Args:
        image_feat, text_feat: (B, E) normalised features of the online encoders.
        image_feat_m, text_feat_m: (B, E) normalised features of the momentum encoders.
        image_queue, text_queue: (E, Q) earlier momentum features.
        temp: temperature, scalar.
        alpha: weight of the momentum targets, in [0, 1].
        ids: (B,) image ids; given together with ``queue_ids``, (Q,) or (1, Q), ids of the queued features.

    Returns:
        The loss (mean over rows, halved sum of both directions), then the similarities over temp of online images and
        momentum texts of the batch, and of online texts and momentum images, (B, B) each. All are differentiable with
        respect to ``image_feat``, ``text_feat`` and ``temp``; momentum features and queues are constants.
    """
    if (ids is None) != (queue_ids is None):
        raise ValueError("ids and queue_ids belong together; expected both or neither")
    batch = image_feat.shape[0]
    with torch.no_grad():
        image_keys = torch.cat([image_feat_m.t(), image_queue.to(image_feat_m.dtype)], dim=1)
        text_keys = torch.cat([text_feat_m.t(), text_queue.to(text_feat_m.dtype)], dim=1)
        positives = positive_targets(image_keys, batch, ids, queue_ids)
        targets_i2t = alpha * (image_feat_m @ text_keys / temp).softmax(dim=1) + (1 - alpha) * positives
        targets_t2i = alpha * (text_feat_m @ image_keys / temp).softmax(dim=1) + (1 - alpha) * positives

    sim_i2t = image_feat @ text_keys / temp
    sim_t2i = text_feat @ image_keys / temp
    loss_i2t = -(sim_i2t.log_softmax(dim=1) * targets_i2t).sum(dim=1).mean()
    loss_t2i = -(sim_t2i.log_softmax(dim=1) * targets_t2i).sum(dim=1).mean()
    return (loss_i2t + loss_t2i) / 2, sim_i2t[:, :batch], sim_t2i[:, :batch]


def positive_targets(keys: Tensor, batch: int, ids: Tensor | None, queue_ids: Tensor | None) -> Tensor:
    """Hard targets (B, B + Q), rows summing to 1, for keys (E, B + Q): own pair, or equal ids."""
    if ids is None or queue_ids is None:
        targets = keys.new_zeros(batch, keys.shape[1])
        return targets.fill_diagonal_(1)
    all_ids = torch.cat([ids.view(-1), queue_ids.view(-1)])
    equal = (ids.view(-1, 1) == all_ids[None, :]).to(keys.dtype)
    return equal / equal.sum(dim=1, keepdim=True)
