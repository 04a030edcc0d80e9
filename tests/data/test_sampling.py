from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils.data import DistributedSampler

from blip_fast.data.sampling import EpochSampler, sample_seed, seeded


@pytest.mark.parametrize(("length", "world_size"), [(10, 1), (11, 2), (3, 4), (12, 4)])
def test_ranks_get_what_torchs_sampler_deals_them(length: int, world_size: int) -> None:
    for rank, epoch in itertools.product(range(world_size), (0, 3)):
        theirs = DistributedSampler(range(length), world_size, rank, seed=5)
        ours = EpochSampler(length, 1, 5, rank, world_size)
        theirs.set_epoch(epoch)
        ours.set_epoch(epoch)
        assert ours.indices() == list(theirs)


def test_a_last_batch_that_is_not_full_is_dropped() -> None:
    assert [len(batch) for batch in EpochSampler(10, 4)] == [4, 4]


def test_an_epoch_goes_on_where_it_stopped() -> None:
    sampler = EpochSampler(20, 3, seed=1, rank=1, world_size=2)
    sampler.set_epoch(4)
    whole = list(sampler)
    sampler.set_epoch(4, start_batch=2)
    assert list(sampler) == whole[2:]
    assert len(sampler) == len(whole) == 3
    sampler.set_epoch(5)
    assert list(sampler) != whole


def test_each_pass_of_an_epoch_holds_every_sample_once_in_its_own_order() -> None:
    sampler = EpochSampler(5, 5, passes=3)
    passes = [[key.number for key in batch] for batch in sampler]
    assert all(sorted(one) == [0, 1, 2, 3, 4] for one in passes)
    sampler.set_epoch(1)
    later = [[key.number for key in batch] for batch in sampler]
    assert len({tuple(one) for one in passes + later}) == 6


def test_seeds_of_samples_depend_on_run_epoch_and_sample() -> None:
    seeds = {sample_seed(*numbers) for numbers in itertools.product(range(10), repeat=3)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert next(iter(EpochSampler(1, 1, seed=7)))[0].seed == sample_seed(7, 0, 0)


def test_a_seeded_block_repeats_and_leaves_no_trace() -> None:
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    with seeded(3):
        first = torch.rand(4)
    with seeded(3):
        assert torch.equal(torch.rand(4), first)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 3, "batch_size": 4}, "batch_size=4 on each of 1 ranks is more than the 3 samples"),
        ({"length": 0, "batch_size": 1}, "more than the 0 samples"),
        ({"length": 3, "batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"length": 3, "batch_size": 1, "rank": 2, "world_size": 2}, "rank=2 is not below world_size=2"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EpochSampler(**arguments)
    with pytest.raises(ValueError, match="start_batch=4 is not among the 3 batches"):
        EpochSampler(3, 1).set_epoch(0, start_batch=4)


def test_a_sample_looks_another_way_in_every_pass() -> None:
    sampler = EpochSampler(6, 4, seed=3, passes=3)
    epochs = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        epochs.append([key for batch in sampler for key in batch])
    keys = epochs[0] + epochs[1]
    assert [key.number for key in epochs[0]].count(0) in (2, 3)  # the last batch may lack it
    assert len({key.seed for key in keys}) == len(keys)
    sampler.set_epoch(1, start_batch=2)
    assert [key for batch in sampler for key in batch] == epochs[1][8:]
