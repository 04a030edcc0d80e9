"""Peak extra memory against allocations of known size."""

from __future__ import annotations

import platform

import pytest
import torch

from blip_fast.benchmarks.memory import peak_extra_bytes

CPU = torch.device("cpu")
MIB = 1 << 20
SLACK = 8 * MIB  # pages of the interpreter and of thread stacks

needs_linux = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs Linux with glibc")


def peak(call) -> int:
    measured = peak_extra_bytes(call, CPU)
    if measured is None:
        pytest.skip("this kernel has no resettable high-water mark")
    return measured


@needs_linux
def test_a_temporary_inside_the_call_is_seen():
    def call():
        torch.ones(64 * MIB // 4)

    assert abs(peak(call) - 64 * MIB) < SLACK


@needs_linux
def test_the_answer_counts_and_temporaries_at_once_add_up():
    x = torch.ones(32 * MIB // 4)
    assert abs(peak(lambda: (x + 1) * 2) - 64 * MIB) < SLACK  # x + 1 lives while the product is written


@needs_linux
def test_a_temporary_of_a_cpp_kernel_is_seen():
    x = torch.ones(4096, 4096 + 64)[:, :4096]  # no view is contiguous in the right way: reshape copies inside
    assert abs(peak(lambda: x.t().reshape(-1).sum()) - 64 * MIB) < SLACK


@needs_linux
def test_memory_that_the_heap_kept_is_not_free_of_charge():
    def call():
        return [torch.ones(MIB // 4) for _ in range(48)]

    call()  # leaves chunks below the mmap threshold in the heap
    assert abs(peak(call) - 48 * MIB) < SLACK


@needs_linux
def test_work_in_place_takes_nothing():
    x = torch.ones(64 * MIB // 4)
    assert peak(lambda: x.add_(1)) < SLACK


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_allocator_is_exact():
    device = torch.device("cuda")
    assert peak_extra_bytes(lambda: torch.ones(64 * MIB // 4, device=device), device) == 64 * MIB
