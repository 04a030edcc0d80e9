"""mine_hard_negatives: the same picks on every backend, their distribution, and rows without candidates."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import blip_fast
from blip_fast.ops import mine_hard_negatives
from blip_fast.reference import hard_negatives as reference
from tests.ops.common import backends_of, device_of, dtypes_of

BACKENDS = pytest.mark.parametrize("backend", backends_of("mine_hard_negatives"))
LARGE = float("inf")


def similarities(rows: int, columns: int, scale: float = 10.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, rows, columns, generator=generator) * scale)


def repeated_ids(columns: int) -> torch.Tensor:
    return torch.randint(max(columns // 3, 1), (columns,), generator=torch.Generator().manual_seed(1))


def chi_square_is_plausible(counts: torch.Tensor, probabilities: torch.Tensor) -> bool:
    """Below five standard deviations: false alarm about once in a million."""
    expected = probabilities * counts.sum()
    drawable = expected > 0
    assert not counts[~drawable].any()
    statistic = ((counts - expected)[drawable] ** 2 / expected[drawable]).sum()
    freedom = int(drawable.sum()) - 1
    return abs(statistic - freedom) < 5 * (2 * freedom) ** 0.5


@BACKENDS
@pytest.mark.parametrize(
    ("rows", "columns", "row_offset"), [(5, 600, 150), (7, 7, 0), (1, 1, 0), (2, 2, 0), (3, 1003, 1000), (2, 2500, 1)]
)
@pytest.mark.parametrize("epsilon", [1e-4, 0.0])
@pytest.mark.parametrize("with_ids", [False, True])
def test_picks_equal_those_of_the_reference(backend, rows, columns, row_offset, epsilon, with_ids):
    sims = similarities(rows, columns)
    ids = repeated_ids(columns) if with_ids else None
    device = device_of(backend)
    for dtype in dtypes_of(backend):
        cast = [sim.to(dtype) for sim in sims]
        draw = {"epsilon": epsilon, "seed": -7, "offset": 2**33 + 5, "row_offset": row_offset}
        with blip_fast.backend("reference"):
            expected = mine_hard_negatives(*cast, ids, **draw)
        with blip_fast.backend(backend):
            got = mine_hard_negatives(*(s.to(device) for s in cast), None if ids is None else ids.to(device), **draw)
        assert torch.equal(got.image_for_text.cpu(), expected.image_for_text)
        assert torch.equal(got.text_for_image.cpu(), expected.text_for_image)


@BACKENDS
def test_picks_with_awkward_values_equal_those_of_the_reference(backend):
    sim_i2t, sim_t2i = similarities(8, 8)
    sim_i2t[0, 3], sim_i2t[1, 1], sim_i2t[2], sim_i2t[3, :7] = torch.nan, torch.nan, -LARGE, -LARGE
    sim_i2t[4, 4], sim_i2t[5, 6], sim_i2t[6], sim_i2t[7, 7] = LARGE, LARGE, 3e38, -3e38
    device = device_of(backend)
    for epsilon in (0.0, 1e-4, 1.0):
        with blip_fast.backend("reference"):
            expected = mine_hard_negatives(sim_i2t, sim_t2i, epsilon=epsilon, seed=3)
        with blip_fast.backend(backend):
            got = mine_hard_negatives(sim_i2t.to(device), sim_t2i.to(device), epsilon=epsilon, seed=3)
        assert torch.equal(torch.stack(got).cpu(), torch.stack(expected))
        assert (got.text_for_image.cpu() != torch.arange(8)).all()


@BACKENDS
def test_picks_where_weights_have_fewer_bits_equal_those_of_the_reference(backend):
    sim = torch.zeros(2, 3000)
    assert reference.fraction_bits(3000, 1.0) < 40
    for offset in range(4):
        with blip_fast.backend("reference"):
            expected = mine_hard_negatives(sim, sim, epsilon=1.0, seed=3, offset=offset)
        with blip_fast.backend(backend):
            device = device_of(backend)
            got = mine_hard_negatives(sim.to(device), sim.to(device), epsilon=1.0, seed=3, offset=offset)
        assert torch.equal(torch.stack(got).cpu(), torch.stack(expected))


@pytest.mark.parametrize(("epsilon", "with_ids"), [(1e-4, False), (0.02, True), (0.0, True)])
def test_distribution_over_100_000_draws(epsilon, with_ids):
    # On the fastest backend: the others make the same picks.
    # Each row is the row above it, moved by one column: pick - row has the same distribution in all rows.
    size, calls = 64, 800
    rotation = (torch.arange(size) - torch.arange(size)[:, None]) % size
    profiles = torch.randn(2, size, generator=torch.Generator().manual_seed(2)) * 2
    ids = torch.arange(size) % 16 if with_ids else None
    counts = torch.zeros(2, size)
    for offset in range(calls):
        picks = mine_hard_negatives(profiles[0][rotation], profiles[1][rotation], ids, epsilon, seed=5, offset=offset)
        relative = (torch.stack(picks) - torch.arange(size)) % size
        counts += torch.stack([torch.bincount(row, minlength=size) for row in relative])
    weights = profiles.double().softmax(1) + epsilon
    weights[:, ::16] = 0 if with_ids else weights[:, ::16]
    weights[:, 0] = 0
    assert counts.sum() == 2 * calls * size >= 100_000
    for drawn, weight in zip(counts, weights.flip(0), strict=True):
        assert chi_square_is_plausible(drawn, weight / weight.sum())


@pytest.mark.parametrize("epsilon", [1e-4, 0.0])
def test_weights_are_those_published(epsilon):
    sims = similarities(20, 600)
    own = torch.arange(20)[:, None] == torch.arange(600)
    published = reference.hard_negative_weights(*sims, epsilon=epsilon)
    for sim, eager in zip(sims, published, strict=True):
        exact = (sim.double().softmax(1) + epsilon).masked_fill(own, 0)
        ours = reference.fixed_point_weights(sim, ~own, ~own, epsilon).double()
        exact, eager, ours = (w / w.sum(1, keepdim=True) for w in (exact, eager.double(), ours))
        assert (ours - exact).abs().max() <= 1.5 * (eager - exact).abs().max()


def test_fixed_point_exp_against_float64():
    t = -torch.rand(100_000, generator=torch.Generator().manual_seed(0)) * 12
    t[:3] = torch.tensor([0.0, -(2.0**-24), -1.0])
    exact = t.double().exp()
    got = reference.fixed_point_exp(t, 40).double() * 2.0**-40
    assert ((got - exact).abs() <= 2e-7 * exact + 2.0**-40).all()
    assert not reference.fixed_point_exp(torch.tensor([-32.0, -1e30, -LARGE, torch.nan]), 40).any()


@pytest.mark.parametrize("columns", [1, 7, 600, 2**16, 2**20])
@pytest.mark.parametrize("epsilon", [0.0, 1e-4, 1.0])
def test_sums_of_weights_do_not_overflow(columns, epsilon):
    bits = reference.fraction_bits(columns, epsilon)
    assert 20 <= bits <= 40
    assert columns * (1 + epsilon * columns) * 2**bits < 2**62


@BACKENDS
def test_a_batch_split_over_ranks_makes_the_same_picks(backend):
    sims = [sim.to(device_of(backend)) for sim in similarities(6, 6)]
    with blip_fast.backend(backend):
        whole = torch.stack(mine_hard_negatives(*sims, seed=1, offset=9))
        parts = [
            torch.stack(mine_hard_negatives(*(s[i : i + 2] for s in sims), seed=1, offset=9, row_offset=i))
            for i in (0, 2, 4)
        ]
    assert torch.equal(whole, torch.cat(parts, 1))


@BACKENDS
def test_seed_and_offset_name_the_draw(backend):
    device = device_of(backend)
    sims = [sim.to(device) for sim in similarities(6, 64, scale=0.0)]

    def draw(seed, offset):
        return torch.stack(mine_hard_negatives(*sims, seed=seed, offset=offset))

    with blip_fast.backend(backend):
        first = draw(11, 4)
        assert torch.equal(first, draw(11, 4))
        assert torch.equal(first, draw(torch.tensor([11], device=device), torch.tensor(4, device=device)))
        assert torch.equal(draw(2**64 - 1, 0), draw(-1, 0))
        for other in (draw(12, 4), draw(11, 5), draw(11, 4 + 2**32), draw(11 + 2**32, 4)):
            assert (first != other).float().mean() > 0.5
    assert not torch.equal(first[0], first[1])


def test_rows_without_weights_draw_uniformly():
    columns, calls = 5, 2000
    nan = torch.full((columns, columns), torch.nan)
    same, some = torch.zeros(columns, dtype=torch.int64), torch.tensor([0, 0, 1, 1, 1])
    uniform = {
        "equal ids": (torch.zeros(columns, columns), same, [0, 1, 1, 1, 1]),
        "softmax undefined": (nan, None, [0, 1, 1, 1, 1]),
        "softmax undefined, ids": (nan, some, [0, 0, 1, 1, 1]),
        "all -inf": (torch.full_like(nan, -LARGE), some, [0, 0, 1, 1, 1]),
    }
    for sim, ids, candidates in uniform.values():
        counts = torch.zeros(columns)
        for offset in range(calls):
            picks = mine_hard_negatives(sim, sim, ids, 0.0, seed=1, offset=offset)
            counts += torch.bincount(torch.stack([p[0] for p in picks]), minlength=columns)
        weights = torch.tensor(candidates).double()
        assert chi_square_is_plausible(counts, weights / weights.sum())


@BACKENDS
@pytest.mark.parametrize("epsilon", [1e-4, 0.0])
def test_a_single_sample_is_its_own_negative(backend, epsilon):
    sim = torch.zeros(1, 1, device=device_of(backend))
    with blip_fast.backend(backend):
        for ids in (None, torch.tensor([3], device=sim.device)):
            assert [p.item() for p in mine_hard_negatives(sim, sim, ids, epsilon, seed=0)] == [0, 0]


@BACKENDS
def test_a_dominant_positive_does_not_hide_the_others(backend):
    # In fp32 the softmax of the others is 0; without epsilon they are drawn in proportion all the same.
    sim = torch.tensor([[1000.0, 5.0, -LARGE, 30.0]], device=device_of(backend))
    with blip_fast.backend(backend):
        picks = [mine_hard_negatives(sim, sim, epsilon=0.0, seed=0, offset=i).text_for_image.item() for i in range(20)]
    assert picks == [3] * 20


@BACKENDS
def test_strided_and_empty_inputs_and_no_gradient(backend):
    device = device_of(backend)
    wide = torch.randn(8, 12, device=device, requires_grad=True)
    with blip_fast.backend(backend):
        ids = torch.arange(16, device=device) // 4
        got = mine_hard_negatives(wide[:, 2:10], wide[:, 2:10].T, ids[::2], seed=1)
        expected = mine_hard_negatives(wide[:, 2:10].clone(), wide[:, 2:10].T.contiguous(), ids[::2].clone(), seed=1)
        empty = mine_hard_negatives(wide[:0], wide[:0], seed=1)
    assert torch.equal(torch.stack(got), torch.stack(expected))
    assert [p.shape for p in empty] == [(0,), (0,)]
    assert got.image_for_text.dtype == torch.int64
    assert not got.image_for_text.requires_grad


@BACKENDS
def test_opcheck(backend):
    device = device_of(backend)
    sims = [sim.to(device) for sim in similarities(3, 8)]
    seed, ids = torch.tensor([1], device=device), torch.arange(8, device=device) % 5
    with blip_fast.backend(backend):
        for arguments in ((None, 1e-4, seed, seed, 2), (ids, 0.0, seed, seed, 0)):
            torch.library.opcheck(torch.ops.blip_fast.mine_hard_negatives.default, (*sims, *arguments))


def test_autocast_keeps_the_dtype():
    sims = similarities(32, 32)
    plain = mine_hard_negatives(*sims, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = mine_hard_negatives(*sims, seed=1)
    assert torch.equal(torch.stack(plain), torch.stack(under_autocast))


def test_compiles_without_a_graph_break():
    def step(sim_i2t, sim_t2i, seed, offset):
        negatives = mine_hard_negatives(sim_i2t, sim_t2i, seed=seed, offset=offset)
        return sim_i2t[negatives.text_for_image].sum()

    sims = [sim.requires_grad_() for sim in similarities(5, 5)]
    arguments = *sims, torch.tensor([1]), torch.tensor([2])
    eager = step(*arguments)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(*arguments)
    compiled.backward()
    assert torch.equal(eager, compiled)
    assert sims[0].grad.sum() == 25


def test_fake_and_meta_tensors():
    sims = [sim.to("meta") for sim in similarities(3, 8)]
    picks = mine_hard_negatives(*sims, seed=1)
    assert [(p.shape, p.dtype, p.device.type) for p in picks] == [((3,), torch.int64, "meta")] * 2


def test_nothing_is_read_back_to_the_host():
    seen = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(function.name())
            return function(*args, **(kwargs or {}))

    seed = torch.tensor([1])
    with blip_fast.backend("reference"), Recorder():
        reference.draw(*similarities(4, 9), repeated_ids(9), 1e-4, seed, seed, 0)
    assert seen
    assert not {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::multinomial"} & set(seen)


def test_counts_no_matrix_product():
    with FlopCounterMode(display=False) as counter:
        mine_hard_negatives(*similarities(4, 4), seed=0)
    assert counter.get_total_flops() == 0


SIM = torch.zeros(2, 4)


@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        ((SIM[0], SIM), {}, r"sim_i2t has shape \(4,\); expected \(B, N\)"),
        ((SIM[:, :0], SIM[:, :0]), {}, "expected .* 1 <= N"),
        ((SIM, SIM[:1]), {}, r"sim_t2i has shape \(1, 4\); expected that of sim_i2t"),
        ((SIM.long(), SIM.long()), {}, "expected one floating-point dtype"),
        ((SIM, SIM.half()), {}, "expected one floating-point dtype"),
        ((SIM, SIM.to("meta")), {}, "another device"),
        ((SIM, SIM, torch.zeros(4, dtype=torch.int64, device="meta")), {}, "another device"),
        ((SIM, SIM, torch.zeros(2, dtype=torch.int64)), {}, r"ids is torch.int64 of shape \(2,\); expected"),
        ((SIM, SIM, torch.zeros(4)), {}, "ids is torch.float32"),
        ((SIM, SIM), {"epsilon": -0.1}, r"epsilon is -0.1; expected a number in \[0, 1\]"),
        ((SIM, SIM), {"epsilon": float("nan")}, "epsilon is nan"),
        ((SIM, SIM), {"row_offset": 3}, "row_offset is 3 for 2 rows; expected 0 to"),
        ((SIM.T, SIM.T), {}, "row_offset is 0 for 4 rows"),
        ((SIM, SIM), {"seed": torch.zeros(2, dtype=torch.int64)}, "seed is torch.int64 of 2 elements"),
        ((SIM, SIM), {"offset": torch.zeros(1)}, "offset is torch.float32 of 1 elements"),
    ],
)
def test_refuses(arguments, changes, message):
    with pytest.raises(ValueError, match=message):
        mine_hard_negatives(*arguments, **({"seed": 0} | changes))
