"""``blip-fast train`` in processes of its own, which start quickly: they are forked from one that has imported everything."""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

_PATIENCE = 300  # seconds; a run takes one
_PRELOADED = [
    "blip_fast.cli.train",
    "blip_fast.models",
    "blip_fast.tasks.captions",
    "blip_fast.tasks.nlvr",
    "blip_fast.tasks.pretrain",
    "blip_fast.tasks.retrieval",
    "blip_fast.tasks.retrieval_video",
    "blip_fast.tasks.run",
    "blip_fast.tasks.vqa",
    "blip_fast.data.loader",
]


def train(
    program: str,
    settings: Mapping[str, Any],
    output: Path,
    *flags: str,
    ranks: int = 1,
    die_after: int = 0,
) -> str:
    """Run a program on the CPU to its end and return what rank 0 printed.

    With ``die_after`` all ranks must be dead by SIGKILL as soon as they have saved their state so many times.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    overrides = [part for name, value in settings.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    arguments = [program, "--output_dir", str(output), "--device", "cpu", *flags, *overrides]
    address = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_free_port()), WORLD_SIZE=str(ranks))
    processes, prints = [], [output.with_name(f"{output.name}.rank{rank}.txt") for rank in range(ranks)]
    for rank, file in enumerate(prints):
        environ = address | dict(RANK=str(rank), LOCAL_RANK=str(rank)) if ranks > 1 else {}
        processes.append(_context().Process(target=_main, args=(arguments, environ, die_after, file)))
        processes[-1].start()
    for process in processes:
        process.join(_PATIENCE)
    codes = [process.exitcode for process in processes]
    text = prints[0].read_text()
    if codes != [-signal.SIGKILL if die_after else 0] * ranks:
        for process in processes:
            process.kill()
        raise AssertionError(f"exit codes {codes}\n" + "\n".join(file.read_text() for file in prints))
    return text


@functools.cache
def _context() -> ForkServerContext:
    os.environ["OMP_NUM_THREADS"] = "1"  # a process that has started threads cannot be forked
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _main(arguments: Sequence[str], environ: Mapping[str, str], die_after: int, prints: Path) -> None:
    os.environ.update(environ)
    with prints.open("w", buffering=1) as file:
        sys.stdout = sys.stderr = file
        if die_after:
            _die_after(die_after)
        from blip_fast.cli.train import command

        command(list(arguments))


def _die_after(times: int) -> None:
    """Kill this process when its state has been saved so many times."""
    from blip_fast.training import resume

    save, done = resume.save_state, 0

    def save_and_die(*arguments: Any) -> None:
        nonlocal done
        save(*arguments)
        done += 1
        if done == times:
            os.kill(os.getpid(), signal.SIGKILL)

    resume.save_state = save_and_die
