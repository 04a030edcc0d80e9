"""Figures as SVG text to stand inside a page; the same data give the same text."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

ACCENT = "#0f766e"
_INK, _MUTED, _GRID = "#1f2933", "#94a3b8", "#e2e8f0"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "svg.hashsalt": "blip_fast",  # else the ids of clip paths are random
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def to_svg(figure: Figure) -> str:
    """The figure as SVG text, without what does not belong inside HTML: XML declaration and doctype."""
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def curve(values: Sequence[float], title: str, smooth: int = 20) -> str:
    """One metric by step: every value faint, the mean of the last ``smooth`` values in full colour."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.2, 2.5), layout="constrained")
        axes = figure.subplots()
        if smooth > 1:
            axes.plot(values, color=_MUTED, linewidth=0.6, alpha=0.7)
        axes.plot(running_mean(values, smooth), color=ACCENT, linewidth=1.8)
        axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
        axes.set_xlabel("step")
        axes.set_xlim(0, max(len(values) - 1, 1))
        axes.set_ylim(bottom=0)
        return to_svg(figure)


def score_map(scores: Sequence[Sequence[float]]) -> str:
    """Scores in [0, 1], one row per picture and one column per caption, as a map from white (0) to the accent (1)."""
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(4.4, 4.0), layout="constrained")
        axes = figure.subplots()
        colours = LinearSegmentedColormap.from_list("accent", ["#f8fafc", ACCENT])
        mesh = axes.pcolormesh(scores, cmap=colours, vmin=0, vmax=1, edgecolors="white", linewidth=0.4)
        axes.set_aspect("equal")
        axes.invert_yaxis()
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel("captions")
        axes.set_ylabel("pictures")
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(mesh, ax=axes, fraction=0.046, ticks=[0, 0.5, 1])
        bar.outline.set_visible(False)
        return to_svg(figure)


def score_histogram(true: Sequence[float], false: Sequence[float]) -> str:
    """How scores in [0, 1] of true and of false pairs are spread, in twenty bins, as shares of each kind."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.4, 4.0), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True)
        for axes, values, colour, name in ((upper, true, ACCENT, "true pairs"), (lower, false, _MUTED, "false pairs")):
            weights = [100 / len(values)] * len(values)
            axes.hist(values, bins=20, range=(0, 1), weights=weights, color=colour, edgecolor="white")
            axes.set_title(f"{len(values)} {name}", loc="left", fontsize=10, fontweight="bold")
            axes.set_ylabel("%")
            axes.set_ylim(0, 100)
        lower.set_xlabel("probability that picture and caption match")
        lower.set_xlim(0, 1)
        return to_svg(figure)


def match_histograms(counts: Mapping[str, Sequence[int]], threshold: float) -> str:
    """How matching probabilities are spread, from the counts of equal bins over [0, 1] for each kind of text.

    Bins from the threshold on are in full colour.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 2.4 * len(counts)), layout="constrained")
        rows = figure.subplots(len(counts), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (name, bins) in zip(rows, counts.items(), strict=True):
            share = [100 * count / max(sum(bins), 1) for count in bins]
            left = [number / len(bins) for number in range(len(bins))]
            colours = [ACCENT if edge + 0.5 / len(bins) >= threshold else _MUTED for edge in left]
            axes.bar(left, share, width=1 / len(bins), align="edge", color=colours, edgecolor="white", linewidth=0.5)
            axes.axvline(threshold, color=_INK, linewidth=1, linestyle="--")
            axes.set_title(f"{sum(bins):,} {name}", loc="left", fontsize=10, fontweight="bold")
            axes.set_ylabel("%")
            axes.set_xlim(0, 1)
        axes.set_xlabel("probability that picture and text match")
        return to_svg(figure)


def line_plot(x: Sequence[float], lines: Mapping[str, Sequence[float]], title: str) -> str:
    """One or more named lines over epochs ``x``; a legend where there are several. Values that are no numbers leave gaps."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.2, 2.5), layout="constrained")
        axes = figure.subplots()
        for (name, values), color in zip(lines.items(), itertools.cycle((ACCENT, _MUTED))):
            axes.plot(
                x, values, color=color, linewidth=1.8, marker="." if len(x) < 30 else None, label=plain_text(name)
            )
        axes.set_title(plain_text(title), loc="left", fontsize=10, fontweight="bold")
        axes.set_xlabel("epoch")
        if len(lines) > 1:
            axes.legend(frameon=False)
        return to_svg(figure)


def plain_text(text: str) -> str:
    """Text that matplotlib does not take for mathematics."""
    return text.replace("$", r"\$")


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of the last ``window`` values (fewer at the start) at each place."""
    means, total = [], 0.0
    for index, value in enumerate(values):
        total += value - (values[index - window] if index >= window else 0.0)
        means.append(total / min(index + 1, window))
    return means
