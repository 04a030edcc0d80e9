"""Runs one benchmark file in a process of its own, so that neither a crash nor the state of the heap touches another."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import torch
from rich.console import Console

from .discovery import Benchmark, load
from .environment import REPOSITORY
from .harness import run_case
from .job import Setting
from .limits import MachineLimits
from .results import CaseResult, Document, new_document, read, write
from .table import new_console, print_case

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of one benchmark: its cases, what failed, and what the time limit cut off."""

    cases: list[CaseResult] = dataclasses.field(default_factory=list)
    failures: list[str] = dataclasses.field(default_factory=list)
    not_measured: list[str] = dataclasses.field(default_factory=list)


def run_in_child(benchmark: Benchmark, setting: Setting, seconds: float) -> Outcome:
    """Run ``benchmark`` in a process of its own, for at most ``seconds``.

    Cases that were finished before the process died or was stopped are kept.
    """
    if seconds <= 0:
        return Outcome(not_measured=[f"{benchmark.name}: not run, no time was left"])
    with tempfile.TemporaryDirectory() as folder:
        json_file = Path(folder) / "results.json"
        command = [sys.executable, "-m", f"{__package__}.worker", str(benchmark.path), str(json_file)]
        command += _options(setting)
        sys.stdout.flush()  # what was printed so far comes before what the process prints
        failures: list[str] = []
        stopped: list[str] = []
        try:
            with _sigterm_unwinds():
                code = subprocess.run(command, cwd=REPOSITORY, timeout=seconds, check=False).returncode
            if code:
                failures.append(f"{benchmark.name}: its process ended with {_describe_code(code)}")
        except subprocess.TimeoutExpired:
            line = f"{benchmark.name}: stopped after {seconds:.0f} s"
            (stopped if setting.limited else failures).append(line)  # without a limit for all it hangs
        if not json_file.exists():
            return Outcome([], failures, stopped)
        document = read(json_file)
        return Outcome(document.cases, document.failures + failures, stopped)


@contextlib.contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """SIGTERM ends this process by an exception, on which `subprocess.run` kills its child."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_benchmark(benchmark: Benchmark, setting: Setting, json_file: Path, console: Console) -> Document:
    """Run ``benchmark`` here; ``json_file`` is rewritten after each case."""
    document = new_document(setting.device, setting.quick)
    machine = MachineLimits(setting.device)
    try:
        for case in filter(None, map(setting.select, benchmark.cases(setting))):
            result = run_case(benchmark.name, case, setting, machine)
            document.cases.append(result)
            print_case(result, console)
            write(document, json_file)
    except Exception as error:  # makes the whole run fail, but the other benchmarks still run
        console.print_exception()
        document.failures.append(f"{benchmark.name}: {type(error).__name__}: {error}")
    write(document, json_file)
    return document


@click.command()
@click.argument("path", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("json_file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--device", required=True)
@click.option("--quick/--full", required=True)
@click.option("--dtype", type=click.Choice(sorted(DTYPES)))
@click.option("--peers")
@click.option("--published", type=click.Path(file_okay=False, path_type=Path))
@click.option("--limited", is_flag=True)
def main(
    path: Path,
    json_file: Path,
    device: str,
    quick: bool,
    dtype: str | None,
    peers: str | None,
    published: Path | None,
    limited: bool,
) -> None:
    """Run the benchmark file PATH and write its results to JSON_FILE."""
    benchmark = load(path)
    if benchmark is None:
        raise click.BadParameter(f"{path.name} has no function 'cases'", param_hint="PATH")
    setting = Setting(torch.device(device), quick, DTYPES.get(dtype or ""), split_peers(peers), published, limited)
    run_benchmark(benchmark, setting, json_file, new_console())


def split_peers(text: str | None) -> tuple[str, ...] | None:
    """``auto`` or nothing: all (None); ``none``: no peers; else names with commas between them."""
    if text in (None, "auto"):
        return None
    return () if text == "none" else tuple(text.split(","))


def _options(setting: Setting) -> list[str]:
    options = ["--device", setting.device.type, "--quick" if setting.quick else "--full"]
    if setting.dtype is not None:
        options += ["--dtype", str(setting.dtype).removeprefix("torch.")]
    if setting.peers is not None:
        options += ["--peers", ",".join(setting.peers) or "none"]
    if setting.published is not None:
        options += ["--published", str(setting.published)]
    if setting.limited:
        options.append("--limited")
    return options


def _describe_code(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"code {code}"


if __name__ == "__main__":
    main()
