"""One self-contained HTML page of results files, and of the kernels' ahead-of-time report."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from blip_fast.checkpoints.files import write_atomically, write_text
from blip_fast.report.figures import to_svg
from blip_fast.report.page import inline_svg, render

from .plots import scaling, speedups
from .results import CaseResult, Document, Row
from .roofline import Roof, roofs
from .table import describe_aim, describe_limits, row_cells

PNG_DPI = 160
SaveFigure = Callable[[str, Figure], Markup]


@dataclasses.dataclass(frozen=True)
class Kernels:
    """The ahead-of-time report (a row per kernel, configuration and architecture), and what its operations could do."""

    versions: dict[str, str]
    rows: list[dict[str, Any]]
    roofs: list[Roof]


def read_kernels(path: Path) -> Kernels:
    """Read a file of `python -m blip_fast.benchmarks.aot --json`. Raises ValueError where it is none."""
    try:
        values = json.loads(path.read_text())
        return Kernels(values["versions"], values["kernels"], list(roofs()))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path.name} is no report of kernels: {error}") from error


def write_report(
    documents: Sequence[Document], kernels: Kernels | None, output: Path, plots: Path | None = None
) -> None:
    """Write the page ``output``, and every plot as SVG and PNG to the folder ``plots``."""

    def save(name: str, figure: Figure) -> Markup:
        svg = to_svg(figure)
        if plots is not None:
            plots.mkdir(parents=True, exist_ok=True)
            write_text(plots / f"{name}.svg", svg)
            write_atomically(plots / f"{name}.png", lambda beside: figure.savefig(beside, format="png", dpi=PNG_DPI))
        return inline_svg(svg)

    page = render(
        "bench.html",
        runs=[
            {"document": document, "cases": _cases(document, save), "sweeps": _sweeps(document, save)}
            for document in documents
        ],
        kernels=kernels,
    )
    write_text(output, page)


def fastest(case: CaseResult) -> Row | None:
    """The fastest of our variants that was right; None where there is none."""
    rows = [row for row in case.rows if row.role == "ours" and row.time is not None]
    return min(rows, key=lambda row: row.time.median_s if row.time else 0.0, default=None)


def baseline(case: CaseResult) -> Row | None:
    """The baseline, if it was measured."""
    return next((row for row in case.rows if row.role == "baseline" and row.time is not None), None)


def memory_ratio(case: CaseResult) -> float | None:
    """Peak extra memory of the fastest of ours over the baseline's."""
    ours, other = fastest(case), baseline(case)
    if ours is None or other is None or ours.peak_extra_bytes is None or not other.peak_extra_bytes:
        return None
    return ours.peak_extra_bytes / other.peak_extra_bytes


def _cases(document: Document, save: SaveFigure) -> Iterator[dict[str, Any]]:
    for case in (case for case in document.cases if case.size is None):
        yield {
            "case": case,
            "ours": fastest(case),
            "memory_ratio": memory_ratio(case),
            "rows": [(row, row_cells(row)) for row in case.rows],
            "aims": [(aim.verdict, describe_aim(aim, case.items)) for aim in case.aims],
            "limits": describe_limits(case),
            "plot": save(_file_name(document, case.benchmark, case.case), speedups(case)) if fastest(case) else None,
        }


def _sweeps(document: Document, save: SaveFigure) -> Iterator[dict[str, Any]]:
    swept = [case for case in document.cases if case.size is not None]
    for benchmark, group in itertools.groupby(swept, key=lambda case: case.benchmark):
        cases = list(group)
        figures = {of: scaling(cases, of) for of in ("time", "memory")}
        plots = [save(_file_name(document, benchmark, of), figure) for of, figure in figures.items() if figure]
        yield {"benchmark": benchmark, "cases": cases, "plots": plots}


def _file_name(document: Document, *parts: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", " ".join((document.device, *parts)).lower()).strip("-")
