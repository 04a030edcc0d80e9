from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from blip_fast.training.seeding import deterministic_algorithms, seed_everything, seed_worker


def draws(generator: torch.Generator) -> list[float]:
    return [
        torch.rand(1).item(),
        float(np.random.rand()),  # noqa: NPY002
        random.random(),
        torch.rand(1, generator=generator).item(),
    ]


def test_a_seed_fixes_torch_numpy_random_and_the_generator() -> None:
    first = draws(seed_everything(3))
    assert draws(seed_everything(3)) == first
    assert not set(draws(seed_everything(4))) & set(first)


def test_ranks_draw_differently() -> None:
    assert draws(seed_everything(3, rank=1)) == draws(seed_everything(4))


def test_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="seed=-1"):
        seed_everything(-1)


def test_workers_follow_torchs_seed() -> None:
    torch.manual_seed(5)
    seed_worker(0)
    first = (np.random.rand(), random.random())  # noqa: NPY002
    torch.manual_seed(6)
    seed_worker(0)
    assert (np.random.rand(), random.random()) != first  # noqa: NPY002


def test_deterministic_algorithms_are_switched_back() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    with deterministic_algorithms():
        assert torch.are_deterministic_algorithms_enabled()
    assert torch.are_deterministic_algorithms_enabled() == before
