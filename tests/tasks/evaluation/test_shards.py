"""Dividing a data set among ranks."""

from __future__ import annotations

import pytest
import torch

from blip_fast.tasks.evaluation.shards import join_shards, shard


@pytest.mark.parametrize(("count", "ranks"), [(10, 1), (10, 3), (2, 4), (0, 2), (8, 4)])
def test_every_sample_is_on_one_rank(count: int, ranks: int) -> None:
    shards = [shard(count, rank, ranks) for rank in range(ranks)]
    assert [index for part in shards for index in part] == list(range(count))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_one_rank_keeps_what_it_has() -> None:
    rows = torch.randn(3, 2)
    assert join_shards(rows, 3, 1) is rows


def test_rank_outside_of_the_world() -> None:
    with pytest.raises(ValueError, match="rank=2; expected 0 to 1"):
        shard(4, 2, 2)
