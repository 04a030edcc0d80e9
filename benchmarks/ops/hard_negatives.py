"""Hard negatives for a batch, against the published loop over samples and one batched torch.multinomial.

The job reads two B x N fp32 matrices and writes 2 B indices: 8 B N + 16 B bytes. It is so small that the time is that of
the calls, and on a GPU that of the published code's 2 B synchronisations.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from blip_fast.ops import mine_hard_negatives
from blip_fast.reference import draw_hard_negatives, hard_negative_weights

from ..backends import backend_variants
from ..job import Aim, Case, Setting, Variant

PLACE = 55
BATCH = 75
AIMS = {"cpu": [Aim(20.0, over="published loop")], "cuda": [Aim(50.0, over="published loop")]}
# Each row has one candidate that is all but certain, and epsilon leaves it so: then the variants' answers are equal.
CERTAIN = 60.0
EPSILON = 1e-12


def cases(setting: Setting) -> Iterable[Case]:
    """The pre-training batch against candidates of eight ranks; with ``--full`` also against itself."""
    yield mining_case(8 * BATCH, setting)
    if not setting.quick:
        yield mining_case(BATCH, setting)


def mining_case(columns: int, setting: Setting) -> Case:
    """Draws for a batch among ``columns`` candidates."""

    def inputs(seed: int) -> tuple[Tensor, ...]:
        generator = torch.Generator(setting.device).manual_seed(seed)
        sims = torch.randn(2, BATCH, columns, generator=generator, device=setting.device) * 3
        other = (torch.arange(BATCH, device=setting.device) + 1 + seed) % columns
        sims.scatter_add_(2, other.expand(2, BATCH)[..., None], torch.full_like(sims, CERTAIN))
        ids = torch.arange(columns, device=setting.device)
        counters = torch.tensor([[seed], [1]], device=setting.device)
        return *sims, ids, *counters

    return Case(
        name=f"batch {BATCH}, {columns} candidates, fp32",
        inputs=inputs,
        variants=[
            Variant("published loop", published_loop, role="baseline"),
            Variant("torch.multinomial, batched", batched),
            *backend_variants("mine_hard_negatives", ours, setting.device, cuda_graph=True),
        ],
        tolerance=0.0,
        input_sets=64,  # seeds below BATCH - 1: the likely candidate is never the own one
        bytes=2 * BATCH * (4 * columns + 8),
        aims=AIMS[setting.device.type],
    )


def published_loop(sim_i2t: Tensor, sim_t2i: Tensor, ids: Tensor, seed: Tensor, offset: Tensor) -> tuple[Tensor, ...]:
    """One draw, and one read-back to the host, per sample and direction."""
    return tuple(draw_hard_negatives(*hard_negative_weights(sim_i2t, sim_t2i, ids[:BATCH], ids, EPSILON)))


def batched(sim_i2t: Tensor, sim_t2i: Tensor, ids: Tensor, seed: Tensor, offset: Tensor) -> tuple[Tensor, ...]:
    """What a good engineer writes; it fails where a row has no candidate, which torch reads back to see."""
    weights_i2t, weights_t2i = hard_negative_weights(sim_i2t, sim_t2i, ids[:BATCH], ids, EPSILON)
    return torch.multinomial(weights_t2i, 1)[:, 0], torch.multinomial(weights_i2t, 1)[:, 0]


def ours(sim_i2t: Tensor, sim_t2i: Tensor, ids: Tensor, seed: Tensor, offset: Tensor) -> tuple[Tensor, ...]:
    return tuple(mine_hard_negatives(sim_i2t, sim_t2i, ids, EPSILON, seed=seed, offset=offset))
