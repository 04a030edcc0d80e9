"""How many pictures go through a model at once: a rule from its sizes and the free memory, and what happens if it errs."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from blip_fast.config import BlipConfig

Item = TypeVar("Item")

# Of free memory, for there are other programs, and buffers that the rule does not count.
_SHARE = {"cpu": 0.25, "cuda": 0.6}
# Beyond these, larger batches are not faster.
_MOST = {"cpu": 32, "cuda": 128}
_VIT_STATES = 12  # alive in a block: residual, norm, query, key, value, attention, MLP of four widths, and its input
_LOGIT_COPIES = 4  # logits of a step, their fp32 form, and what the search makes of them


def batch_size_for(
    config: BlipConfig, device: torch.device, dtype: torch.dtype, texts: int = 0, max_length: int = 0
) -> int:
    """Pictures in a batch: the share of free memory (CPU 25 %, GPU 60 %) over the bytes a picture takes; 32 (128) at most.

    ``texts`` of ``max_length`` tokens are decoded for each picture; see :func:`bytes_per_picture`.
    """
    kind = "cuda" if device.type == "cuda" else "cpu"
    taken = bytes_per_picture(config, dtype.itemsize, texts, max_length)
    return max(1, min(int(_SHARE[kind] * free_memory(device)) // taken, _MOST[kind]))


def bytes_per_picture(config: BlipConfig, itemsize: int, texts: int = 0, max_length: int = 0) -> int:
    """Bytes that a picture takes in the model, estimated from its sizes.

    L x vit_width x 12 in the image encoder; with texts also keys and values of the image (2 x L x text_width a layer) and
    of the tokens (2 x max_length x text_width a layer and text), and four copies of the logits.
    """
    tokens = 1 + (config.image_size // config.vit_patch) ** 2
    values = tokens * config.vit_width * _VIT_STATES + 3 * config.image_size**2
    if texts:
        values += 2 * config.text_layers * config.text_width * (tokens + texts * max_length)
    return values * itemsize + texts * config.vocab_size * 4 * _LOGIT_COPIES


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device; on a CPU within the limit of the process's control group, too."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        free = int(found[1]) * 1024 if found else 0
    except OSError:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return min(free, _left_in_control_group(Path("/sys/fs/cgroup")) or free)


def _left_in_control_group(folder: Path) -> int | None:
    try:
        limit = (folder / "memory.max").read_text().strip()
        if limit == "max":
            return None
        # Pages of files that nobody uses count as used, until others need them.
        cache = re.search(r"^inactive_file (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
        used = int((folder / "memory.current").read_text()) - (int(cache[1]) if cache else 0)
        return max(int(limit) - used, 1)
    except (OSError, ValueError):
        return None


def in_parts(work: Callable[[slice], list[Item]], start: int, stop: int) -> list[Item]:
    """``work`` on rows start to stop at once or, where memory does not suffice, on halves of them.

    Raises torch.OutOfMemoryError where it does not suffice for one row.
    """
    try:
        return work(slice(start, stop))
    except torch.OutOfMemoryError:
        if stop - start == 1:
            raise
    torch.cuda.empty_cache()  # outside of the handler, which keeps the failed attempt's tensors alive
    middle = (start + stop) // 2
    return in_parts(work, start, middle) + in_parts(work, middle, stop)
