"""A run: the chosen benchmarks one after the other, their tables, and the file of their results."""

from __future__ import annotations

import dataclasses
import difflib
import math
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from .discovery import Benchmark
from .job import Setting
from .results import Document, earlier_cases, merged, new_document, write
from .table import print_head, print_summary
from .worker import run_in_child

SECONDS_PER_BENCHMARK = {"quick": 300.0, "full": 1800.0}  # whole models, compiled and timed in turn, take long
SECONDS_OF_THE_LAST = 60.0


def choose(found: Sequence[Benchmark], names: Sequence[str]) -> list[Benchmark]:
    """The benchmarks of these names; a folder's name stands for all in it, no name for all there are.

    Raises ValueError for a name that there is not.
    """
    chosen: list[Benchmark] = []
    for name in names:
        named = [benchmark for benchmark in found if name in (benchmark.name, benchmark.folder)]
        if not named:
            known = sorted({benchmark.name for benchmark in found} | {benchmark.folder for benchmark in found})
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(known) or 'none'}"
            raise ValueError(f"no benchmark is called '{name}'; {hint}")
        chosen += [benchmark for benchmark in named if benchmark not in chosen]
    return chosen if names else list(found)


def run(
    benchmarks: Sequence[Benchmark],
    setting: Setting,
    console: Console,
    *,
    json_file: Path | None = None,
    update: bool = False,
    seconds: float = math.inf,
    tests_passed: bool | None = None,
    broken: Sequence[str] = (),
    lacking: Sequence[str] = (),
) -> Document:
    """Run ``benchmarks`` within ``seconds``, and print.

    Args:
        benchmarks: most important first.
        setting: what is asked for.
        console: where the tables go.
        json_file: rewritten after every benchmark, so that a stopped run leaves what it had.
        update: keep what that file says of other benchmarks.
        seconds: time for all; benchmarks that are left over are listed as not measured.
        tests_passed: how the tests ended that ran just before.
        broken: benchmarks that could not be imported, which count as failures.
        lacking: benchmarks that need a package which is not installed, which do not.

    Raises:
        ValueError: ``update`` of a file of another machine or setting.
    """
    head = new_document(setting.device, setting.quick)
    document = dataclasses.replace(head, tests_passed=tests_passed, failures=list(broken), not_measured=list(lacking))
    before = earlier_cases(json_file, document) if update and json_file and json_file.exists() else []
    print_head(document, console)
    deadline = time.monotonic() + seconds
    limit = SECONDS_PER_BENCHMARK["quick" if setting.quick else "full"]
    for benchmark in benchmarks:
        outcome = run_in_child(benchmark, setting, min(limit, _share(deadline - time.monotonic())))
        document.cases.extend(outcome.cases)
        document.failures.extend(outcome.failures)
        document.not_measured.extend(outcome.not_measured)
        if json_file is not None:
            write(dataclasses.replace(document, cases=merged(before, document.cases)), json_file)
    document.failures.extend(unknown_peers(document, setting))
    if not document.cases and not document.failures and not document.not_measured:
        document.failures.append("no case of these benchmarks is what was asked for: nothing was measured")
    print_summary(document, console)
    return document


def _share(left: float) -> float:
    """Seconds for the next benchmark of ``left``: half, so that none takes the time of all that follow."""
    return min(left, max(left / 2, SECONDS_OF_THE_LAST))


def unknown_peers(document: Document, setting: Setting) -> list[str]:
    """A line for each peer that was asked for and is in none of the cases."""
    names = [row.variant.lower() for case in document.cases for row in case.rows]
    asked = setting.peers or ()
    return [f"no peer is called '{word}'" for word in asked if not any(word.lower() in name for name in names)]
