"""Philox4x32-10, counter-based random numbers (Salmon et al., SC'11), in integer arithmetic of plain torch.

Every random pick of the library comes from here or from its twins, `csrc/common/philox.h` and `kernels/philox.py`. The
key is a 64-bit seed. The four words of the counter name the number that is wanted (an offset, a row, ...), never a
thread or a tile, so that all backends draw the same.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
INCREMENTS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10

Word: TypeAlias = "Tensor | int"


def philox(seed: Word, c0: Word, c1: Word, c2: Word, c3: Word) -> tuple[Word, Word, Word, Word]:
    """Four random 32-bit words for each counter.

    Args:
        seed: 64-bit key: an int, or an int64 tensor that broadcasts with the counters.
        c0, c1, c2, c3: words of the counter: ints or int64 tensors that broadcast; their low 32 bits count.

    Returns:
        Four int64 tensors with values in [0, 2**32), of the broadcast shape (ints where no argument is a tensor).
    """
    key = seed & MASK, seed >> 32 & MASK
    c0, c1, c2, c3 = (word & MASK for word in (c0, c1, c2, c3))
    for _ in range(ROUNDS):
        high_a, low_a = _multiply(MULTIPLIERS[0], c0)
        high_b, low_b = _multiply(MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high_b ^ c1 ^ key[0], low_b, high_a ^ c3 ^ key[1], low_a
        key = (key[0] + INCREMENTS[0]) & MASK, (key[1] + INCREMENTS[1]) & MASK
    return c0, c1, c2, c3


def _multiply(a: int, b: Word) -> tuple[Word, Word]:
    """High and low word of a product of two 32-bit words, in halves so that int64 does not overflow."""
    low, high = (b & 0xFFFF) * a, (b >> 16) * a
    high = high + (low >> 16)
    return high >> 16, (high & 0xFFFF) << 16 | low & 0xFFFF


def uniform(word: Tensor) -> Tensor:
    """Float32 in [0, 1) from 32-bit words: their high 24 bits, exact."""
    return (word >> 8).float() * 2.0**-24


def dropout_state(
    dropout_p: float, seed: Tensor | int | None, offset: Tensor | int, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """Seed and offset of dropout as tensors on the device, (None, None) without dropout; a seed of None is drawn.

    ValueError where ``dropout_p`` is outside of [0, 1).
    """
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p is {dropout_p}; expected a number in [0, 1)")
    if dropout_p == 0:
        return None, None
    drawn = torch.randint(2**63 - 1, (1,), device=device) if seed is None else word_on("seed", seed, device)
    return drawn, word_on("offset", offset, device)


def word_on(name: str, number: Tensor | int, device: torch.device) -> Tensor:
    """(1,) int64 on the device: an int modulo 2**64, or such a tensor. ValueError, with the argument's name, for others."""
    if not isinstance(number, Tensor):
        return torch.full((1,), (int(number) + 2**63) % 2**64 - 2**63, dtype=torch.int64, device=device)
    if number.numel() != 1 or number.dtype != torch.int64 or number.device != device:
        found = f"{number.dtype} of {number.numel()} elements on {number.device}"
        raise ValueError(f"{name} is {found}; expected an int or one int64 element on {device}")
    return number.reshape(1)
