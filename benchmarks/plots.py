"""Plots of results: speed-ups of one case, and cost against size over the cases of a sweep."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.figure import Figure

from blip_fast.report.figures import ACCENT, STYLE

from .results import CaseResult, Row

PEER, BASELINE = "#94a3b8", "#475569"
LINES = ("#475569", "#94a3b8", "#b45309", "#7c3aed", "#be185d", "#0369a1")
MARKERS = "sD^vP*"
ROW_INCHES = 0.28


def speedups(case: CaseResult) -> Figure:
    """Speed of every variant over the baseline's, with its 95 % interval; longer is faster."""
    rows = [row for row in case.rows if row.speedup is not None]
    with mpl.rc_context(STYLE | {"axes.grid.axis": "x"}):
        figure = Figure(figsize=(6.4, 0.7 + ROW_INCHES * len(rows)), layout="constrained")
        axes = figure.subplots()
        for place, row in enumerate(rows):
            ratio = row.speedup
            assert ratio is not None  # filtered above
            error = [[max(ratio.value - ratio.low, 0)], [max(ratio.high - ratio.value, 0)]]
            axes.barh(place, ratio.value, xerr=error, color=_colour(row), height=0.66, error_kw={"linewidth": 0.8})
            axes.annotate(f"{ratio.value:.3g}x", (ratio.high, place), (4, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(rows)), [row.variant for row in rows])
        axes.axvline(1, color=BASELINE, linewidth=0.8)
        axes.set_xlabel("speed over the baseline's")
        axes.margins(x=0.12)
        axes.invert_yaxis()
        return figure


def scaling(cases: Sequence[CaseResult], of: str) -> Figure | None:
    """Cost of each variant against the size that the sweep varies, both on logarithmic axes; None where none was counted.

    ``of``: ``time`` or ``memory``.
    """
    label, unit = {"time": ("median time, ms", 1e-3), "memory": ("peak extra memory, MiB", 2**20)}[of]
    ours = {row.variant for case in cases for row in case.rows if row.role == "ours"}
    names = list(dict.fromkeys(row.variant for case in cases for row in case.rows if _cost(row, of)))
    if not names:
        return None
    looks = iter(itertools.cycle(zip(LINES, MARKERS, strict=True)))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.4, 3.2), layout="constrained")
        axes = figure.subplots()
        for name in names:
            colour, marker = (ACCENT, "o") if name in ours else next(looks)
            points = _points(cases, name, of)
            sizes, costs = [size for size, _ in points], [cost / unit for _, cost in points]
            axes.plot(sizes, costs, label=name, color=colour, marker=marker, markersize=4)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel(cases[0].size[0] if cases[0].size else "")
        axes.set_ylabel(label)
        axes.legend(fontsize=7, frameon=False)
        return figure


def _points(cases: Sequence[CaseResult], variant: str, of: str) -> list[tuple[float, float]]:
    """Size and cost of one variant, where it was measured."""
    rows = [(case.size[1], row) for case in cases if case.size for row in case.rows if row.variant == variant]
    costs = [(size, _cost(row, of)) for size, row in rows]
    return [(size, cost) for size, cost in costs if cost]


def _cost(row: Row, of: str) -> float | None:
    if of == "memory":
        return row.peak_extra_bytes
    return None if row.time is None else row.time.median_s


def _colour(row: Row) -> str:
    return {"ours": ACCENT, "baseline": BASELINE}.get(row.role, PEER)
