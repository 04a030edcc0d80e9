"""Image-text contrastive loss with momentum keys, queues and soft targets (ALBEF, arXiv 2107.07651, equations 1 to 6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
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
    offset: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Contrastive loss of B pairs against N + Q momentum keys, in both directions.

    With keys k (momentum features of the batch, then the queue) and an online feature q, the loss of a row is
    ``-sum_j target_j log_softmax(q . k / temp)_j``; the target is ``alpha * softmax(q_m . k / temp)`` of the momentum
    feature plus ``(1 - alpha)`` spread evenly over the positives: the row's own pair, or all keys of equal id.

    Args:
        image_feat, text_feat: (B, E) normalised features of the online encoders.
        image_feat_m, text_feat_m: (N, E) normalised features of the momentum encoders. On one rank N = B; on several they
            are gathered from all ranks, and this rank's are the rows ``offset`` to ``offset + B - 1``.
        image_queue, text_queue: (E, Q) earlier momentum features.
        temp: temperature, scalar.
        alpha: weight of the momentum targets, in [0, 1].
        ids: (N,) image ids; given together with ``queue_ids``, (Q,) or (1, Q), ids of the queued features.
        offset: where this rank's rows begin in the gathered ones.

    Returns:
        The loss (mean over rows, halved sum of both directions), then the similarities over temp of online images and
        momentum texts of the batch, and of online texts and momentum images, (B, N) each. All are differentiable with
        respect to ``image_feat``, ``text_feat`` and ``temp``; momentum features and queues are constants.
    """
    image_keys, text_keys = momentum_keys(image_feat_m, text_feat_m, image_queue, text_queue)
    targets_i2t, targets_t2i = soft_targets(
        image_feat_m, text_feat_m, image_keys, text_keys, temp, alpha, ids, queue_ids, offset, image_feat.shape[0]
    )
    sim_i2t = image_feat @ text_keys / temp
    sim_t2i = text_feat @ image_keys / temp
    loss_i2t = -(sim_i2t.log_softmax(dim=1) * targets_i2t).sum(dim=1).mean()
    loss_t2i = -(sim_t2i.log_softmax(dim=1) * targets_t2i).sum(dim=1).mean()
    gathered = image_feat_m.shape[0]
    return (loss_i2t + loss_t2i) / 2, sim_i2t[:, :gathered], sim_t2i[:, :gathered]


@torch.no_grad()
def momentum_keys(
    image_feat_m: Tensor, text_feat_m: Tensor, image_queue: Tensor, text_queue: Tensor
) -> tuple[Tensor, Tensor]:
    """Image and text keys, (E, N + Q) each: the batch, then the queue."""
    image_keys = torch.cat([image_feat_m.t(), image_queue.to(image_feat_m.dtype)], dim=1)
    text_keys = torch.cat([text_feat_m.t(), text_queue.to(text_feat_m.dtype)], dim=1)
    return image_keys, text_keys


@torch.no_grad()
def soft_targets(
    image_feat_m: Tensor,
    text_feat_m: Tensor,
    image_keys: Tensor,
    text_keys: Tensor,
    temp: Tensor | float,
    alpha: Tensor | float,
    ids: Tensor | None,
    queue_ids: Tensor | None,
    offset: int,
    batch: int,
) -> tuple[Tensor, Tensor]:
    """Targets (B, N + Q) of both directions, rows summing to 1."""
    rows = slice(offset, offset + batch)
    hard = (1 - alpha) * positive_targets(image_keys, batch, ids, queue_ids, offset)
    targets_i2t = alpha * (image_feat_m[rows] @ text_keys / temp).softmax(dim=1) + hard
    targets_t2i = alpha * (text_feat_m[rows] @ image_keys / temp).softmax(dim=1) + hard
    return targets_i2t, targets_t2i


def positive_targets(keys: Tensor, batch: int, ids: Tensor | None, queue_ids: Tensor | None, offset: int = 0) -> Tensor:
    """Hard targets (B, N + Q), rows summing to 1, for keys (E, N + Q): own pair, or equal ids."""
    if (ids is None) != (queue_ids is None):
        raise ValueError("ids and queue_ids belong together; expected both or neither")
    if ids is None or queue_ids is None:
        own_pair = torch.eye(batch, dtype=keys.dtype, device=keys.device)
        return F.pad(own_pair, (offset, keys.shape[1] - offset - batch))
    all_ids = torch.cat([ids.view(-1), queue_ids.view(-1)])
    equal = (all_ids[offset : offset + batch, None] == all_ids[None, :]).to(keys.dtype)
    return equal / equal.sum(dim=1, keepdim=True)


@torch.no_grad()
def contrastive_loss_with_gradients(
    image_feat: Tensor,
    text_feat: Tensor,
    image_feat_m: Tensor,
    text_feat_m: Tensor,
    image_queue: Tensor,
    text_queue: Tensor,
    temp: Tensor,
    alpha: Tensor,
    ids: Tensor | None,
    queue_ids: Tensor | None,
    offset: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What :func:`contrastive_loss` returns, then the gradients of the loss: image_feat, text_feat (B, E) and temp.

    Computed and returned in the dtype of temp, whatever the inputs' dtypes, and outside autocast.
    """
    with torch.autocast(image_feat.device.type, enabled=False):
        queries = (image_feat.to(temp.dtype), text_feat.to(temp.dtype))
        features_m = (image_feat_m.to(temp.dtype), text_feat_m.to(temp.dtype))
        image_keys, text_keys = momentum_keys(*features_m, image_queue, text_queue)
        targets = soft_targets(
            *features_m, image_keys, text_keys, temp, alpha, ids, queue_ids, offset, image_feat.shape[0]
        )
        losses, sims, gradients, temp_gradients = [], [], [], []
        for query, keys, target in zip(queries, (text_keys, image_keys), targets, strict=True):
            sim = query @ keys / temp
            losses.append(-(sim.log_softmax(dim=1) * target).sum() / (2 * len(query)))
            sim_gradient = (sim.softmax(dim=1) - target) / (2 * len(query))
            sims.append(sim[:, : len(features_m[0])].clone())
            gradients.append(sim_gradient @ keys.t() / temp)
            temp_gradients.append(-(sim_gradient * sim).sum() / temp)
        return losses[0] + losses[1], *sims, *gradients, temp_gradients[0] + temp_gradients[1]
