"""Philox4x32-10: the published known answers, and the same words in torch, C++ and Triton."""

from __future__ import annotations

import pytest
import torch

from blip_fast import native
from blip_fast.ops import registry
from blip_fast.reference.philox import philox, uniform

# Counter, key and answer from the known-answer file of the Random123 library (philox4x32-10).
PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (PI, (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]
SEEDS = [0, 1, -1, 2**63 - 1, -(2**63), 0x123456789ABCDEF]


def signed(key: tuple[int, int]) -> int:
    value = key[1] << 32 | key[0]
    return value - 2**64 if value >= 2**63 else value


def in_torch(seed: int, counters: torch.Tensor) -> torch.Tensor:
    return torch.stack(philox(torch.tensor(seed), *counters.unbind(1)), 1)


def in_cpp(seed: int, counters: torch.Tensor) -> torch.Tensor:
    return torch.ops.blip_fast_native.philox_words(seed, counters)


def in_triton(seed: int, counters: torch.Tensor) -> torch.Tensor:
    from tests.ops.philox_kernel import philox_words

    return philox_words(seed, counters)


def implementations() -> list[object]:
    found = [in_torch]
    if native.load_error() is None:
        found.append(in_cpp)
    if registry._triton_unavailable() is None:
        found.append(pytest.param(in_triton, marks=pytest.mark.triton))
    return found


@pytest.mark.parametrize("words", implementations())
@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(words, counter, key, answer):
    assert words(signed(key), torch.tensor([counter])).tolist() == [list(answer)]


@pytest.mark.parametrize("words", implementations())
@pytest.mark.parametrize("seed", SEEDS)
def test_equals_python_integers(words, seed):
    counters = torch.randint(2**32, (64, 4), generator=torch.Generator().manual_seed(1))
    assert words(seed, counters).tolist() == [list(philox(seed, *counter)) for counter in counters.tolist()]


@pytest.mark.triton
@pytest.mark.skipif(registry._triton_unavailable() is not None, reason="needs TRITON_INTERPRET=1 or a GPU")
def test_uniform_of_triton_equals_that_of_torch():
    from tests.ops.philox_kernel import uniform_of

    words = torch.cat([torch.tensor([0, 255, 256, 2**31, 2**32 - 1]), torch.randint(2**32, (123,))])
    assert torch.equal(uniform_of(words), uniform(words))


def test_uniform_lies_below_one_and_is_flat():
    assert uniform(torch.tensor([0, 2**32 - 1])).tolist() == [0.0, 1 - 2.0**-24]
    words = philox(7, torch.arange(50_000), 0, 0, 0)
    values = uniform(torch.stack(words))
    counts = torch.histc(values, 64, 0, 1)
    expected = values.numel() / 64
    assert ((counts - expected) ** 2 / expected).sum() < 103.4  # chi-square with 63 degrees of freedom, p = 0.001


def test_scalar_words_broadcast_with_tensors():
    rows = torch.arange(5)
    words = philox(torch.tensor([3]), rows, 1, torch.tensor(2), 0)
    assert [tuple(int(w[i]) for w in words) for i in range(5)] == [philox(3, i, 1, 2, 0) for i in range(5)]
