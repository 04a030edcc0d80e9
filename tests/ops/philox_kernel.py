"""Triton kernels that hand out the words of `blip_fast.kernels.philox` for test_philox.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from blip_fast.kernels.philox import philox, uniform


@triton.jit
def words_kernel(p_seed, p_counters, p_words, N, BLOCK: tl.constexpr):
    o = tl.arange(0, BLOCK)
    mask = o < N
    p = p_counters + o * 4
    c0 = tl.load(p, mask=mask, other=0)
    c1 = tl.load(p + 1, mask=mask, other=0)
    c2 = tl.load(p + 2, mask=mask, other=0)
    c3 = tl.load(p + 3, mask=mask, other=0)
    w0, w1, w2, w3 = philox(tl.load(p_seed), c0, c1, c2, c3)
    p = p_words + o * 4
    tl.store(p, w0.to(tl.int64), mask=mask)
    tl.store(p + 1, w1.to(tl.int64), mask=mask)
    tl.store(p + 2, w2.to(tl.int64), mask=mask)
    tl.store(p + 3, w3.to(tl.int64), mask=mask)


@triton.jit
def uniform_kernel(p_words, p_out, BLOCK: tl.constexpr):
    o = tl.arange(0, BLOCK)
    tl.store(p_out + o, uniform(tl.load(p_words + o).to(tl.uint32)))


def philox_words(seed: int, counters: torch.Tensor) -> torch.Tensor:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    counters = counters.to(device)
    words = torch.empty_like(counters)
    words_kernel[(1,)](torch.tensor([seed], device=device), counters, words, len(counters), BLOCK=64)
    return words.cpu()


def uniform_of(words: torch.Tensor) -> torch.Tensor:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    out = torch.empty(128, device=device)
    uniform_kernel[(1,)](words.to(device), out, BLOCK=128)
    return out.cpu()
