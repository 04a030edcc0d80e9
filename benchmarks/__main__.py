"""``python -m benchmarks [NAME...]``: run benchmarks, print their tables, write their results."""

from __future__ import annotations

import dataclasses
import difflib
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click
import torch

from benchmarks.discovery import ROOT, Benchmark, discover
from benchmarks.job import Setting
from benchmarks.results import new_document, write
from benchmarks.table import new_console, print_head, print_summary
from benchmarks.worker import run_in_child

SECONDS_PER_BENCHMARK = {"quick": 300.0, "full": 1800.0}  # whole models, compiled and timed in turn, take long


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Default: cuda where torch finds a GPU, else cpu.")
@click.option("--quick/--full", default=True, help="The quick set of cases (default), or all of them and longer.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the results here.")
@click.option("--list", "list_only", is_flag=True, help="List the benchmarks, most important first, and stop.")
@click.option("--time-limit", type=float, help="Seconds for the whole run; benchmarks left over count as failed.")
@click.option("--tests-passed/--tests-failed", default=None, help="Record how the tests ended that ran just before.")
@click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=ROOT,
    help="Folder with ops/ and models/ to look for benchmarks in (default: this package).",
)
def main(
    names: Sequence[str],
    device: str | None,
    quick: bool,
    json_file: Path | None,
    list_only: bool,
    time_limit: float | None,
    tests_passed: bool | None,
    root: Path,
) -> None:
    """Run the benchmarks NAME (default: all). Exits with 1 where one breaks or a variant's answer is wrong."""
    found, broken = discover(root)
    chosen = _choose(found, names)
    if list_only:
        for line in [f"{benchmark.name:24} {benchmark.summary}" for benchmark in chosen] + broken:
            click.echo(line)
        sys.exit(1 if broken else 0)
    setting, console = Setting(_device(device), quick), new_console()
    head = new_document(setting.device, quick)
    document = dataclasses.replace(head, tests_passed=tests_passed, failures=[] if names else broken)
    print_head(document, console)
    deadline = time.monotonic() + (math.inf if time_limit is None else time_limit)
    for benchmark in chosen:
        limit = SECONDS_PER_BENCHMARK["quick" if quick else "full"]
        cases, failures = run_in_child(benchmark, setting, min(limit, deadline - time.monotonic()))
        document.cases.extend(cases)
        document.failures.extend(failures)
        if json_file is not None:
            write(document, json_file)  # after each benchmark: a stopped run leaves what it had
    print_summary(document, console)
    sys.exit(1 if document.failed else 0)


def _choose(found: Sequence[Benchmark], names: Sequence[str]) -> list[Benchmark]:
    by_name = {benchmark.name: benchmark for benchmark in found}
    for name in names:
        if name not in by_name:
            near = difflib.get_close_matches(name, by_name, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(by_name) or 'none'}"
            raise click.BadParameter(f"no benchmark is called '{name}'; {hint}", param_hint="NAME")
    return [by_name[name] for name in names] if names else list(found)


def _device(name: str | None) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise click.BadParameter("torch finds no CUDA GPU here; use --device cpu", param_hint="--device")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
