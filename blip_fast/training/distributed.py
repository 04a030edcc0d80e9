"""Which ranks take part in a run (torchrun, SLURM or a single process), and what they agree on."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from blip_fast.reference.gather import world_size

# Other ranks wait while rank 0 scores captions or writes files.
_PATIENCE = datetime.timedelta(hours=2)


@dataclass(frozen=True)
class Rank:
    """One process of a run: ``number`` of ``world_size``, ``local`` among those of its machine."""

    number: int = 0
    world_size: int = 1
    local: int = 0


def find_rank(environ: Mapping[str, str], world_size: int = 1, distributed: bool = True) -> Rank:
    """This process among the others, as published: torchrun's variables, else SLURM's, else alone.

    Args:
        environ: environment variables.
        world_size: number of processes where SLURM does not say it (``--world_size``).
        distributed: False insists on a single process.

    Raises ValueError where the variables contradict each other or the arguments.
    """
    if "RANK" in environ and "WORLD_SIZE" in environ:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    elif "SLURM_PROCID" in environ:
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    else:
        return Rank()
    number, size = _number(environ, names[0], 0), _number(environ, names[1], world_size)
    if not 0 <= number < size:
        raise ValueError(f"{names[0]}={number}; expected a rank below {names[1]}={size}")
    if not distributed and size > 1:
        raise ValueError(f"distributed=False, but {size} processes have been started; expected one")
    return Rank(number, size, _number(environ, names[2], number % max(torch.cuda.device_count(), 1)))


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, str(default))
    if not text.isdecimal():
        raise ValueError(f"environment variable {name}={text!r}; expected a number")
    return int(text)


def find_device(name: str, rank: Rank) -> torch.device:
    """The device of this process: "cuda" is the GPU of its local rank, "auto" is that where there is one, else the CPU.

    A GPU becomes the current one. Raises ValueError where the device cannot be used.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", rank.local % max(torch.cuda.device_count(), 1))
        if device.type == "cuda":
            torch.cuda.set_device(device)  # Triton launches on the current device, graphs are captured there
        torch.empty(1, device=device)
        if device.type == "meta":
            raise RuntimeError("its tensors have no values")
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


@contextlib.contextmanager
def process_group(rank: Rank, device: torch.device, dist_url: str = "env://") -> Iterator[None]:
    """Within the block the ranks are connected: NCCL for GPUs, gloo for the CPU. Nothing happens for a single process."""
    if rank.world_size == 1:
        yield
        return
    if dist_url == "env://" and "MASTER_ADDR" not in os.environ:
        raise ValueError("dist_url='env://' needs MASTER_ADDR and MASTER_PORT, which torchrun sets; expected these or "
                         "dist_url=tcp://HOST:PORT of rank 0")  # fmt: skip
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, number, count = next(dist.rendezvous(dist_url, rank.number, rank.world_size, timeout=_PATIENCE))
    # torchrun may give ranks that it starts again the store of the dead ones, with the addresses of these.
    store = dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=_PATIENCE)
    yield
    dist.destroy_process_group()  # not after an error: it would wait for the other ranks


def barrier() -> None:
    """Wait for all ranks, on the CPU."""
    if world_size() > 1:
        dist.all_reduce(torch.zeros(1))


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Sum of a tensor over all ranks."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def gather_objects(value: Any) -> list[Any] | None:
    """Values of all ranks, in order, on rank 0; None elsewhere."""
    if world_size() == 1:
        return [value]
    values: list[Any] | None = [None] * world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, values)
    return values


def broadcast_object(value: Any) -> Any:
    """The value of rank 0, on every rank."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


class SharedFlag:
    """A flag that any rank may raise and all ranks see in the same step.

    Nobody waits for it: `poll` starts to exchange the present state and tells what the exchange before that one found.
    """

    def __init__(self) -> None:
        self.raised = False
        self._group = dist.new_group(backend="gloo") if world_size() > 1 else None
        self._pending: tuple[Any, torch.Tensor] | None = None

    def poll(self) -> bool:
        """Whether any rank had raised the flag when all polled last; all ranks call it equally often."""
        if self._group is None:
            return self.raised
        seen = self._finish()
        value = torch.tensor([float(self.raised)])
        work = dist.all_reduce(value, dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._pending = (work, value)
        return seen

    def _finish(self) -> bool:
        if self._pending is None:
            return False
        work, value = self._pending
        work.wait()
        self._pending = None
        return bool(value)

    def settle(self) -> bool:
        """Whether any rank has raised the flag by now: all ranks wait for each other."""
        return self.poll() or self._finish() if self._group is not None else self.raised
