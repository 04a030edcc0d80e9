from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from blip_fast.report.figures import curve, line_plot, running_mean, score_histogram, score_map


@pytest.mark.parametrize(
    "draw",
    [
        lambda: curve([3.0, 2.0, 1.5], "loss & <more>"),
        lambda: curve([1.0], "one step", smooth=1),
        lambda: line_plot(
            [0.0, 0.5, 1.0], {"val": [1.0, float("nan"), 3.0], "test": [2.0, 2.0, 2.0]}, "R@1 $x & <more>"
        ),
        lambda: score_map([[0.1, 0.9], [0.4, 0.2]]),
        lambda: score_histogram([0.9, 1.0], [0.0, 0.1, 0.5]),
    ],
)
def test_figures_are_svg_and_repeat(draw: object) -> None:
    svg = draw()  # type: ignore[operator]
    assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert svg == draw()  # type: ignore[operator]


def test_titles_are_escaped() -> None:
    assert "<script>" not in curve([1.0, 2.0], "<script>alert(1)</script>")


def test_running_mean_uses_what_there_is() -> None:
    assert running_mean([2.0, 4.0, 6.0, 8.0], 2) == [2.0, 3.0, 5.0, 7.0]
