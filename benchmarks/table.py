"""Results on the terminal."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .job import MIN_ROUNDS
from .results import AimResult, CaseResult, Document, Row
from .stats import Interval

BUSY = 0.5  # load per CPU, before the run
LOG_WIDTH = 150  # where the output is no terminal
STYLES = {"ok": "", "unavailable": "dim", "wrong": "bold red", "failed": "bold red"}


def new_console() -> Console:
    """A console on standard output, wide enough for the tables when it is a file or a pipe."""
    return Console(width=None if sys.stdout.isatty() else LOG_WIDTH, highlight=False)


def print_head(document: Document, console: Console) -> None:
    """The machine and the versions, in two lines, and a warning where the machine has other work."""
    machine, versions = document.machine, document.versions
    gpu = f"{machine['gpu']}, driver {machine['driver']}; " if "gpu" in machine else ""
    console.print(escape(f"{gpu}{machine['cpu']}, {machine['threads']} threads, {machine['cpu_capability']}"))
    listed = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    state = {True: " with changes", False: "", None: ""}[document.dirty]
    console.print(escape(f"{listed}; commit {(document.commit or 'unknown')[:12]}{state}"))
    load, cpus = machine["load_average"], machine["cpus"]
    if load and cpus and load > BUSY * cpus:
        console.print(
            f"Other work is running here (load {load:.1f} on {cpus} CPUs): the figures are noisy.", style="yellow"
        )


def print_case(case: CaseResult, console: Console) -> None:
    """The table of one case, its limits and its aims."""
    table = Table(title=f"{case.benchmark}: {case.case}", title_justify="left", title_style="bold")
    graphs = any(row.graph_median_s is not None for row in case.rows)
    heads = ["median", "20 % - 80 %", "runs", "speed-up", "of limit", "extra memory", "error"]
    table.add_column("variant", overflow="fold")
    for head in heads + ([f"{case.items[1]}/s"] if case.items else []) + (["CUDA graph"] if graphs else []):
        table.add_column(head, justify="right")
    for row in case.rows:
        rate = [f"{case.items[0] / row.time.median_s:.4g}" if row.time else "-"] if case.items else []
        cells = row_cells(row) + rate + ([_seconds(row.graph_median_s)] if graphs else [])
        table.add_row(escape(row.variant), *cells, style=STYLES[row.status])
    console.print(table)
    for row in case.rows:
        if row.reason:
            console.print(f"  {escape(row.variant)}: {row.status}: {escape(row.reason)}", style=STYLES[row.status])
    console.print(f"  {escape(describe_limits(case))}")
    for aim in case.aims:
        console.print(f"  {escape(describe_aim(aim, case.items))}")
    console.print()


def print_summary(document: Document, console: Console) -> None:
    """One line per case, for the fastest of our variants; then what failed, or that nothing did."""
    table = Table(title="Summary: the fastest blip_fast variant of each case", title_justify="left", title_style="bold")
    table.add_column("case", overflow="fold")
    table.add_column("variant", overflow="fold")
    for head in ("median", "against baseline", "of limit", "extra memory", "aims met"):
        table.add_column(head, justify="right")
    for case in document.cases:
        ours = [row for row in case.rows if row.role == "ours" and row.time is not None]
        if ours:
            best = min(ours, key=lambda row: row.time.median_s if row.time else 0.0)
            met = sum(aim.verdict == "met" for aim in case.aims)
            median, _, _, speedup, share, extra, _ = row_cells(best)
            name, aims = f"{case.benchmark}: {case.case}", f"{met} of {len(case.aims)}"
            table.add_row(escape(name), escape(best.variant), median, speedup, share, extra, aims)
    console.print(table)
    for line in document.not_measured:
        console.print(f"not measured: {escape(line)}")
    for line in failure_lines(document):
        console.print(f"FAILED {escape(line)}", style="bold red")
    if document.tests_passed is False:
        console.print("The tests did not pass: these are no times of a correct program.", style="bold red")
    if not document.failed:
        console.print(f"{len(document.cases)} cases measured; every answer was right.")


def describe_limits(case: CaseResult) -> str:
    """The machine's limits that were measured around a case, and what they leave of its time."""
    limits = case.limits
    bound = f"; {case.bound} bound, floor {_seconds(limits.floor_s(case.flops, case.bytes))}"
    return (
        f"limits here: {limits.gemm_rate / 1e12:.3g} TFLOP/s ({case.dtype} matrix product), "
        f"{limits.copy_bandwidth / 1e9:.4g} GB/s copy, {limits.update_bandwidth / 1e9:.4g} GB/s update in place"
        f"{bound if case.flops or case.bytes else ''}"
    )


def describe_speedup(speedup: Interval, runs: int) -> str:
    """A ratio with its interval, or "no difference" where the interval includes 1; of too few runs the ratio alone."""
    if runs < MIN_ROUNDS:
        return f"{speedup.value:.3g}x"
    if speedup.includes_one:
        return f"no difference [{speedup.low:.3g}, {speedup.high:.3g}]"
    return f"{speedup.value:.3g}x [{speedup.low:.3g}, {speedup.high:.3g}]"


def describe_aim(aim: AimResult, items: tuple[int, str] | None = None) -> str:
    """An aim and how it stands, in a line; ``items`` are those of the case."""
    if aim.of == "memory":
        wanted = f"1/{aim.at_least:.3g} of the memory of {aim.over}"
    elif aim.of == "items" and items is not None:
        wanted = f"{aim.at_least:g} {items[1]}/s"
    else:
        wanted = f"{aim.at_least:g} x {aim.over}" if aim.over else f"{aim.at_least:.0%} of the limit"
    if aim.reached is None:
        return f"aim {wanted}: {aim.verdict}"
    low, value, high = aim.reached.low, aim.reached.value, aim.reached.high
    share = aim.of == "speed" and not aim.over
    reached = f"{value:.0%} [{low:.0%}, {high:.0%}]" if share else f"{value:.4g} [{low:.4g}, {high:.4g}]"
    if aim.of == "memory":
        reached = f"1/{value:.3g}"
    return f"aim {wanted}: {aim.verdict}, {reached} by {aim.variant}"


def failure_lines(document: Document) -> list[str]:
    """A line for all that makes a run fail: benchmarks that broke, and variants that did or gave a wrong answer."""
    return document.failures + [
        f"{case.benchmark}: {case.case}: {row.variant} {row.status}: {row.reason}"
        for case in document.cases
        for row in case.rows
        if row.status in ("wrong", "failed")
    ]


def row_cells(row: Row) -> list[str]:
    """What a table says of a variant: median, quantiles, runs, speed-up, share of the limit, extra memory, error."""
    error = "-" if row.error is None else f"{row.error:.1e}"
    if row.time is None:
        return [row.status, "-", "-", "-", "-", "-", error]
    is_baseline = row.role == "baseline"
    return [
        _seconds(row.time.median_s),
        f"{_seconds(row.time.q20_s)} - {_seconds(row.time.q80_s)}",
        str(row.time.runs),
        "baseline" if is_baseline else "-" if row.speedup is None else describe_speedup(row.speedup, row.time.runs),
        "-" if row.limit_share is None else f"{row.limit_share:.1%}",
        "-" if row.peak_extra_bytes is None else f"{row.peak_extra_bytes / 2**20:.1f} MiB",
        error,
    ]


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.4g} {unit}"
    return f"{seconds / 1e-6:.3g} us"
