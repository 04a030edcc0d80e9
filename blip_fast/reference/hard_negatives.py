"""Hard negatives for image-text matching: wrong partners that the contrastive features find similar."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from blip_fast.outputs import Negatives
from blip_fast.reference.philox import philox, word_on


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
    image_for_text = [int(torch.multinomial(row, 1).item()) for row in own_partner_if_empty(weights_t2i, first_row)]
    text_for_image = [int(torch.multinomial(row, 1).item()) for row in own_partner_if_empty(weights_i2t, first_row)]
    device = weights_i2t.device
    return Negatives(torch.tensor(image_for_text, device=device), torch.tensor(text_for_image, device=device))


def own_partner_if_empty(weights: Tensor, first_row: int) -> Tensor:
    """Weights (B, N) in which a row of zeros has weight 1 at its own partner."""
    weights = weights.clone()
    weights.diagonal(first_row).add_(~weights.any(dim=1))
    return weights


# exp in 64-bit fixed point, so that sums do not depend on their order and every backend makes the same picks.
EXPONENT_BITS = 24  # after the point of exponents
LOG2_E = 1549082005  # log2(e) * 2**30
# 2**f on [0, 1), times 2**30: minimax of degree 6 with the constant 1, relative error 2e-9.
EXP2 = (1073741824, 744260972, 257944253, 59576866, 10388937, 1338725, 232067)
LOWEST = -32.0  # below it exp is 0


def mine_hard_negatives(
    sim_i2t: Tensor,
    sim_t2i: Tensor,
    ids: Tensor | None = None,
    epsilon: float = 1e-4,
    *,
    seed: int | Tensor,
    offset: int | Tensor = 0,
    row_offset: int = 0,
) -> Negatives:
    """Draw from ``hard_negative_weights`` by Philox, not by torch's generator; see `blip_fast.ops.mine_hard_negatives`."""
    words = (word_on(name, number, sim_i2t.device) for name, number in (("seed", seed), ("offset", offset)))
    return draw(sim_i2t, sim_t2i, ids, epsilon, *words, row_offset)


@torch.no_grad()
def draw(
    sim_i2t: Tensor,
    sim_t2i: Tensor,
    ids: Tensor | None,
    epsilon: float,
    seed: Tensor,
    offset: Tensor,
    row_offset: int,
) -> Negatives:
    """The picks of one call; seed and offset are tensors of one element."""
    rows, columns = sim_i2t.shape
    own = torch.arange(row_offset, row_offset + rows, device=sim_i2t.device)
    candidates = torch.arange(columns, device=sim_i2t.device)
    if ids is None:
        ids = candidates
    admissible = ids[row_offset : row_offset + rows, None] != ids
    other = own[:, None] != candidates
    picks = []
    for direction, sim in enumerate((sim_t2i, sim_i2t)):
        weights = fixed_point_weights(sim, admissible, other, epsilon)
        x, y, _, _ = philox(seed, own, direction, offset, offset >> 32)
        picks.append(categorical(weights, x, y, own))
    return Negatives(*picks)


def fixed_point_weights(sim: Tensor, admissible: Tensor, other: Tensor, epsilon: float) -> Tensor:
    """Int64 weights (B, N) in proportion to softmax + epsilon, zero outside ``admissible`` (B, N).

    A row without any weight, or whose softmax is undefined, gets equal weights on ``admissible``, or else on ``other``.
    """
    sim = sim.float()
    if epsilon == 0:  # the softmax may then run over the admissible columns: a dominant positive does not hide them
        sim = sim.masked_fill(~admissible, -torch.inf)
    largest = sim.amax(1, keepdim=True)
    # 0 throughout a row whose softmax is undefined: its differences are NaN, or -inf
    exp = fixed_point_exp(sim - largest, fraction_bits(sim.shape[1], epsilon))
    share = (exp.sum(1, keepdim=True).float() * torch.tensor(epsilon, dtype=torch.float32)).long()
    weights = (exp + share) * admissible
    equal = torch.where(admissible.any(1, keepdim=True), admissible, other)
    return torch.where(weights.any(1, keepdim=True), weights, equal.long())


def fraction_bits(columns: int, epsilon: float) -> int:
    """Bits after the point of the weights: at most 40, and so few that a row's sum stays below 2**62."""
    return min(40, 61 - math.ceil(math.log2(columns * (1 + epsilon * columns))))


def fixed_point_exp(t: Tensor, bits: int) -> Tensor:
    """``exp(t) * 2**bits`` in int64 for float32 t <= 0, relative error 2e-7; 0 where t <= -32 or NaN."""
    t = torch.where(t > LOWEST, t, LOWEST)
    exponent = (t * -(2.0**EXPONENT_BITS)).long() * LOG2_E >> 30
    fraction = -exponent & (1 << EXPONENT_BITS) - 1
    power = torch.full_like(fraction, EXP2[-1])
    for coefficient in EXP2[-2::-1]:
        power = coefficient + (power * fraction >> EXPONENT_BITS)
    return (power << 10 >> 40 - bits) >> (exponent + (1 << EXPONENT_BITS) - 1 >> EXPONENT_BITS)


def categorical(weights: Tensor, x: Tensor, y: Tensor, otherwise: Tensor) -> Tensor:
    """Index drawn in proportion to int64 weights (B, N) by two random words (B,); ``otherwise`` (B,) if all are 0."""
    sums = weights.cumsum(1)
    total = sums[:, -1]
    threshold = scale(total, x >> 1, y >> 1)
    index = (sums <= threshold[:, None]).sum(1)
    return torch.where(total > 0, index, otherwise)


def scale(total: Tensor, high: Tensor, low: Tensor) -> Tensor:
    """``total * r >> 62`` for total < 2**62 and the 62-bit number r of two words of 31 bits, without overflow."""
    total_high, total_low = total >> 31, total & (1 << 31) - 1
    return total_high * high + (total_high * low + total_low * high + (total_low * low >> 31) >> 31)
