"""`blip-fast bench`: the benchmarks, their results, and what became of them."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from blip_fast.cli.options import NumberRange, checked_device

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
NEW_FILE = click.Path(dir_okay=False, path_type=Path)
ROOT = click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with ops/, models/ and sweeps/ to look for benchmarks in, instead of those of blip_fast.",
)


@click.group()
def command() -> None:
    """Run the benchmarks, compare results, and make a page of them."""


@command.command(name="list")
@ROOT
def list_benchmarks(root: Path | None) -> None:
    """List the benchmarks, most important first."""
    from blip_fast.benchmarks.discovery import discover

    found, broken, lacking = discover(*([root] if root else []))
    for benchmark in found:
        click.echo(f"{benchmark.folder:7} {benchmark.name:24} {benchmark.summary}")
    for line in broken + lacking:
        click.echo(line, err=True)
    sys.exit(1 if broken else 0)


@command.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Default: cuda where torch finds a GPU, else cpu.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), help="Only the cases of this dtype.")
@click.option("--quick/--full", default=True, help="The quick set of cases (default), or all of them and longer.")
@click.option("--peers", default="auto", show_default=True, help="auto: all; none; or NAME,... of those wanted.")
@click.option("--json", "json_file", type=NEW_FILE, help="Write the results here.")
@click.option("--update", is_flag=True, help="Keep what the file of --json says of other benchmarks.")
@click.option("--published", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Checkout of BLIP.")
@click.option(
    "--time-limit", type=NumberRange(min=0), help="Seconds for the whole run; what is left over is not measured."
)
@click.option("--tests-passed/--tests-failed", default=None, help="Record how the tests ended that ran just before.")
@ROOT
def run(
    names: Sequence[str],
    device: str | None,
    dtype: str | None,
    quick: bool,
    peers: str,
    json_file: Path | None,
    update: bool,
    published: Path | None,
    time_limit: float | None,
    tests_passed: bool | None,
    root: Path | None,
) -> None:
    """Run the benchmarks NAME, or all of a folder (ops, models, sweeps), or all.

    Exits with 1 where a benchmark breaks, a variant's answer is wrong, a peer asked for by name is none, or no case is what
    was asked for. An aim that is missed is shown and no error: it may be the machine. With --published the benchmark
    `published` holds our reference against the published code, from a checkout of its repository.
    """
    from blip_fast.benchmarks.discovery import discover
    from blip_fast.benchmarks.job import Setting
    from blip_fast.benchmarks.run import choose, run
    from blip_fast.benchmarks.table import new_console
    from blip_fast.benchmarks.worker import DTYPES, split_peers

    if update and json_file is None:
        raise click.UsageError("--update needs --json: it keeps what that file holds")
    found, broken, lacking = discover(*([root] if root else []))
    checkout = None if published is None else published.resolve()
    limited = time_limit is not None
    setting = Setting(checked_device(device), quick, DTYPES.get(dtype or ""), split_peers(peers), checkout, limited)
    try:
        document = run(
            choose(found, names),
            setting,
            new_console(),
            json_file=json_file,
            update=update,
            seconds=math.inf if time_limit is None else time_limit,
            tests_passed=tests_passed,
            broken=[] if names else broken,
            lacking=[] if names else lacking,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    except OSError as error:
        raise click.ClickException(str(error)) from error
    sys.exit(1 if document.failed else 0)


@command.command()
@click.argument("before", type=FILE)
@click.argument("after", type=FILE)
@click.option("--threshold", type=NumberRange(min=0), default=0.1, show_default=True, help="Share that is too much.")
def compare(before: Path, after: Path, threshold: float) -> None:
    """Compare the results AFTER with those BEFORE.

    Exits with 1 where one of our variants became slower by more than the threshold and its runs lie apart from the
    earlier ones, needs more memory by more than the threshold, or is no longer measured, and where something failed in
    the run AFTER. Says where the two were not measured alike.
    """
    from blip_fast.benchmarks.compare import changes, lost, print_changes
    from blip_fast.benchmarks.results import differences
    from blip_fast.benchmarks.table import failure_lines, new_console

    one, other = _read(before), _read(after)
    found, gone = changes(one, other), lost(one, other)
    if not found and not gone:
        raise click.ClickException(f"{before.name} and {after.name} have no case in common")
    print_changes(found, threshold, new_console())
    for fact, here, there in differences(one, other):
        click.echo(f"not measured alike: {fact} is {here!r} before and {there!r} after", err=True)
    for line in failure_lines(other):
        click.echo(f"FAILED {line}")
    for name in gone:
        click.echo(f"no longer measured: {name}")
    sys.exit(1 if gone or other.failed or any(change.worse(threshold) for change in found) else 0)


@command.command()
@click.argument("results", nargs=-1, type=FILE)
@click.option(
    "--kernels", type=FILE, help="Ahead-of-time report of the kernels (`python -m blip_fast.benchmarks.aot`)."
)
@click.option("--output", type=NEW_FILE, default=Path("bench.html"), show_default=True, help="The page.")
@click.option("--plots", type=click.Path(file_okay=False, path_type=Path), help="Write each plot here as SVG and PNG.")
def report(results: Sequence[Path], kernels: Path | None, output: Path, plots: Path | None) -> None:
    """Make one self-contained page of RESULTS, files of `blip-fast bench run --json`."""
    from blip_fast.benchmarks.report import read_kernels, write_report

    if not results and kernels is None:
        raise click.UsageError("there is nothing to show; give files of results, or --kernels")
    try:
        tables = None if kernels is None else read_kernels(kernels)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    documents = [_read(path) for path in results]
    try:
        write_report(documents, tables, output, plots)
    except OSError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{output}: open it in a browser")


@command.command()
@click.argument("results", nargs=-1, required=True, type=FILE)
@click.option(
    "--file", "readme_file", type=FILE, default=Path("README.md"), show_default=True, help="What to write into."
)
def readme(results: Sequence[Path], readme_file: Path) -> None:
    """Write the figures of RESULTS into a Markdown file, between its marks."""
    from blip_fast.benchmarks.readme import label_of, put_figures

    try:
        put_figures(readme_file, {label_of(path): _read(path) for path in results})
    except ValueError as error:
        raise click.ClickException(f"{readme_file}: {error}") from error


def _read(path: Path):  # type: ignore[no-untyped-def]  # a Document, whose module imports torch
    from blip_fast.benchmarks.results import read

    try:
        return read(path)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
