from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from blip_fast.training.seeding import (
    deterministic_algorithms,
    random_state,
    restore_random_state,
    seed_everything,
    unchanged_random_state,
)


def draws() -> list[float]:
    return [torch.rand(1).item(), float(np.random.rand()), random.random()]  # noqa: NPY002


def draws_of(seed: int, rank: int = 0) -> list[float]:
    seed_everything(seed, rank)
    return draws()


def test_a_seed_fixes_torch_numpy_and_random() -> None:
    first = draws_of(3)
    assert draws_of(3) == first
    assert not set(draws_of(4)) & set(first)


def test_ranks_draw_differently() -> None:
    assert draws_of(3, rank=1) == draws_of(4)


def test_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="seed=-1"):
        seed_everything(-1)


def test_what_happens_in_the_block_is_not_noticed_outside() -> None:
    seed_everything(5)
    with unchanged_random_state():
        draws()
        random.gauss(0, 1)
        np.random.standard_normal()  # noqa: NPY002
    assert draws() == draws_of(5)


def test_a_state_survives_a_file(tmp_path: Path) -> None:
    seed_everything(5)
    random.gauss(0, 1)  # leaves a second number behind
    np.random.standard_normal()  # noqa: NPY002
    torch.save(random_state(), tmp_path / "state.pth")
    expected = [*draws(), random.gauss(0, 1), np.random.standard_normal()]  # noqa: NPY002
    seed_everything(6)
    restore_random_state(torch.load(tmp_path / "state.pth", weights_only=True))
    assert [*draws(), random.gauss(0, 1), np.random.standard_normal()] == expected  # noqa: NPY002


def test_deterministic_algorithms_are_switched_back() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    with deterministic_algorithms():
        assert torch.are_deterministic_algorithms_enabled()
    assert torch.are_deterministic_algorithms_enabled() == before
