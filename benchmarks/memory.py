"""Peak extra memory of one call: the most it held at once beyond what was there before it, its answer included.

On a GPU torch's allocator counts it. On a CPU C++ temporaries pass by every hook of torch, so the kernel's own high-water
mark of resident memory is read: free heap pages are first given back (``malloc_trim``), else a call could reuse them
unseen; then the mark is reset through ``/proc/self/clear_refs``. The call runs in this process, warm, so that thread
pools and lazily loaded libraries are not charged to it. The mark moves in pages and is kept per core by the kernel: expect
it to be right to a few MiB.
"""

from __future__ import annotations

import ctypes
import gc
import platform
from collections.abc import Callable
from typing import Any

import torch

RESET_PEAK_RSS = "5"  # the value that resets VmHWM, from proc(5)


def peak_extra_bytes(call: Callable[[], Any], device: torch.device) -> int | None:
    """Run ``call`` once and return its peak extra memory in bytes, or None where the system keeps no such count."""
    gc.collect()
    if device.type == "cuda":
        return _cuda_peak(call, device)
    if not _return_free_heap() or not _reset_peak_rss():
        return None
    before = _peak_rss()
    answer = call()
    extra = _peak_rss() - before
    del answer  # counted: it was alive when the mark was read
    return extra


def _cuda_peak(call: Callable[[], Any], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    answer = call()
    torch.cuda.synchronize(device)
    del answer
    return torch.cuda.max_memory_allocated(device) - before


def _return_free_heap() -> bool:
    if platform.libc_ver()[0] != "glibc":
        return False
    ctypes.CDLL(None).malloc_trim(0)
    return True


def _reset_peak_rss() -> bool:
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write(RESET_PEAK_RSS)
    except OSError:
        return False
    return True


def _peak_rss() -> int:
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no line VmHWM; peak memory cannot be read on this system")
