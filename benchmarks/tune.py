"""Measure the fastest tiles of the attention kernels on this GPU, and store them where the kernels look.

    python -m blip_fast.benchmarks.tune cross_attention

Candidates that spill registers or do not fit in shared memory are left out by ahead-of-time compilation; the others are
timed in turn. The table of the GPU's architecture is rewritten after every job, other jobs' tiles stay as they are.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import triton
from torch import Tensor

from blip_fast import backend
from blip_fast.checkpoints.files import write_json
from blip_fast.kernels import cross_attention, cross_attention_backward, packed_self_attention, tiles
from blip_fast.kernels.aot import LIMITS, compile_specimen
from blip_fast.kernels.attention import attention_specimen
from blip_fast.kernels.tiles import Job, Tile
from blip_fast.ops import cross_attention as cross_attention_op
from blip_fast.ops import packed_self_attention as packed_self_attention_op

from .job import Variant
from .timing import CudaClock, time_interleaved

KERNELS: dict[str, Any] = {
    "forward": cross_attention.cross_attention_kernel,
    "grad_query": cross_attention_backward.cross_attention_grad_query_kernel,
    "grad_key_value": cross_attention_backward.cross_attention_grad_key_value_kernel,
    "self_forward": packed_self_attention.packed_self_attention_kernel,
    "self_backward": packed_self_attention.packed_self_attention_backward_kernel,
}
# By operation: its kernels, forward before backward, and the rows of a tile that it is launched with.
OPERATIONS = {
    "cross_attention": (("forward", "grad_query", "grad_key_value"), (16, 32, 64, 128)),
    "packed_self_attention": (("self_forward", "self_backward"), (16, 32, 64)),
}
ROWS_PER_IMAGE = {16: 3, 32: 26, 64: 52, 128: 300}  # beams; two texts, four texts; more than are re-ranked at a time
HEADS = 12
TEXTS = 300  # 75 pairs: positives, two negatives, language model
SECONDS = 5.0


def jobs_of(operation: str) -> list[Job]:
    """All that is tuned for an operation: head sizes 64 and 128, 16-bit types and fp32."""
    kernels, tile_rows = OPERATIONS[operation]
    return [Job(*parts) for parts in itertools.product(kernels, tile_rows, (64, 128), (2, 4))]


def fits(job: Job, tile: Tile, arch: int) -> bool:
    """Whether nothing spills, with dropout and without, and shared memory suffices."""
    dtype = "bf16" if job.itemsize == 2 else "fp32"
    for dropout in (True, False):
        options = {"TILE_ROWS": job.tile_rows, "CAUSAL": dropout}
        specimen = attention_specimen(KERNELS[job.kernel], job.head_size, dtype, tile, dropout, **options)
        usage = compile_specimen(specimen, arch)
        if usage.spills or usage.shared > LIMITS[arch]["shared_per_block"]:
            return False
    return True


def fitting(job: Job, arch: int) -> list[Tile]:
    """The candidates that fit, compiled by as many processes as there are cores."""
    found = tiles.candidates(job)
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(itertools.compress(found, pool.map(fits, [job] * len(found), found, [arch] * len(found))))


@contextlib.contextmanager
def launched_with(job: Job, tile: Tile, arch: int) -> Iterator[None]:
    """Inside the block the kernel runs with this tile."""
    table = tiles.stored_tiles(arch)
    before = table.get(job)
    table[job] = tile
    tiles.tile_for.cache_clear()
    try:
        yield
    finally:
        tiles.tile_for.cache_clear()
        if before is None:
            del table[job]
        else:
            table[job] = before


def workload(job: Job, device: torch.device) -> Callable[[], Any]:
    """A call that spends its time in the job's kernel, at BLIP-base's heads: the forward pass, or the backward pass."""
    dtype = torch.bfloat16 if job.itemsize == 2 else torch.float32
    attend = _self_attention if job.kernel.startswith("self_") else _cross_attention
    leaves, forward = attend(job, dtype, device)
    if job.kernel in ("forward", "self_forward"):
        return torch.no_grad()(forward)
    out = forward()
    grad_out = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, leaves, grad_out, retain_graph=True)


def _cross_attention(job: Job, dtype: torch.dtype, device: torch.device) -> tuple[list[Tensor], Callable[[], Tensor]]:
    images, keys = (32, 577) if job.tile_rows == 16 else (75, 197)
    rows = ROWS_PER_IMAGE[job.tile_rows]
    query = torch.randn(images * rows, HEADS, job.head_size, dtype=dtype, device=device, requires_grad=True)
    key_value = torch.randn(
        images, keys, 2, HEADS, job.head_size, dtype=dtype, device=device, requires_grad=True
    )  # fmt: skip
    cu_seqlens = torch.arange(images + 1, device=device, dtype=torch.int32) * rows
    image = torch.arange(images, device=device, dtype=torch.int32)
    return [query, key_value], lambda: cross_attention_op(query, key_value, None, cu_seqlens, image)


def _self_attention(job: Job, dtype: torch.dtype, device: torch.device) -> tuple[list[Tensor], Callable[[], Tensor]]:
    lengths = torch.randint(job.tile_rows // 2, job.tile_rows + 1, (TEXTS,), generator=torch.Generator().manual_seed(0))
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(device, torch.int32)
    size = (int(lengths.sum()), 3, HEADS, job.head_size)
    together = torch.randn(size, dtype=dtype, device=device, requires_grad=True)
    return [together], lambda: packed_self_attention_op(together, None, None, cu_seqlens, job.tile_rows)


def fastest(job: Job, choices: Sequence[Tile], arch: int, device: torch.device) -> tuple[Tile, float]:
    """The fastest of these tiles and its time in seconds: the median over rounds in which all take turns."""

    def variant(tile: Tile, call: Callable[[], Any]) -> Variant:
        return Variant(str(tile), call, context=lambda: launched_with(job, tile, arch))

    with backend("triton"):
        call = workload(job, device)
        times = time_interleaved([variant(tile, call) for tile in choices], [()], CudaClock(device), SECONDS)
    medians = np.median(times, axis=1)
    best = int(medians.argmin())
    return choices[best], float(medians[best])


def store(folder: Path, arch: int, device_name: str) -> None:
    """Write the table of ``arch``."""
    document = tiles.table_document(arch, tiles.stored_tiles(arch), device=device_name, triton=triton.__version__)
    write_json(tiles.table_path(arch, folder), document)


@click.command()
@click.argument("operation", type=click.Choice(sorted(OPERATIONS)))
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=tiles.FOLDER,
    help="Folder for the table; default: where the kernels look.",
)
def main(operation: str, output: Path) -> None:
    """Tune the tiles of OPERATION on this GPU."""
    if not torch.cuda.is_available():
        raise click.ClickException("tuning times kernels on a CUDA device, and torch finds none here")
    device = torch.device("cuda")
    arch = tiles.arch_of(device)
    if arch not in LIMITS:
        raise click.ClickException(f"this GPU is sm_{arch}; tables are made for {', '.join(f'sm_{a}' for a in LIMITS)}")
    for job in jobs_of(operation):
        choices = fitting(job, arch)
        tile, seconds = fastest(job, choices, arch, device)
        tiles.stored_tiles(arch)[job] = tile
        store(output, arch, torch.cuda.get_device_name(device))
        print(f"{job}: {tile}, {seconds * 1e6:.1f} us, the fastest of {len(choices)}", flush=True)


if __name__ == "__main__":
    main()
