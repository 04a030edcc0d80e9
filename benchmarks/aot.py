"""What every Triton kernel takes of a GPU, compiled ahead of time for sm_80, sm_90 and sm_100: no GPU is needed.

python -m blip_fast.benchmarks.aot [--json benchmarks/results/aot.json]
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click
import torch
import triton
from rich.console import Console
from rich.table import Table

import blip_fast
from blip_fast.checkpoints.files import write_json
from blip_fast.kernels.aot import ARCHS, compile_specimen, specimens


def report() -> list[dict[str, Any]]:
    """One row per kernel, configuration and architecture."""
    rows = []
    for operation, specimen in specimens():
        for arch in ARCHS:
            usage = compile_specimen(specimen, arch)
            rows.append({"operation": operation, **dataclasses.asdict(usage)})
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows as a table."""
    table = Table(title="Triton kernels, compiled ahead of time", title_justify="left")
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*(f"{value:.0%}" if name == "occupancy" else str(value) for name, value in row.items()))
    Console(width=160).print(table)


@click.command()
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the rows here.")
def main(path: Path | None) -> None:
    """Compile every kernel for every architecture and report registers, spills, shared memory and occupancy."""
    rows = report()
    show(rows)
    if path is not None:
        versions = {"torch": torch.__version__, "triton": triton.__version__, "blip_fast": blip_fast.__version__}
        write_json(path, {"versions": versions, "kernels": rows})


if __name__ == "__main__":
    main()
