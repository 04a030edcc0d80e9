"""The table of figures in the project's README, made from the committed results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from blip_fast.checkpoints.files import write_atomically

from .report import baseline, fastest, memory_ratio
from .results import CaseResult, Document
from .table import describe_speedup, row_cells

BEGIN, END = "<!-- figures: written by `blip-fast bench readme` -->", "<!-- end of figures -->"
HEAD = "| case | against | speed | median | extra memory |\n|---|---|---|---|---|"


def figures(documents: Sequence[Document]) -> str:
    """One table per document, in Markdown: the fastest of our variants of each case against the baseline."""
    return "\n\n".join(_table(document) for document in documents)


def put_figures(readme: Path, documents: Sequence[Document]) -> None:
    """Replace what stands between the marks in the file ``readme``. Raises ValueError where it has no marks."""
    text = with_figures(readme.read_text(encoding="utf-8"), documents)
    write_atomically(readme, lambda beside: beside.write_text(text, encoding="utf-8"))


def with_figures(text: str, documents: Sequence[Document]) -> str:
    """``text`` with the figures between its marks."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"the text has no pair of marks; expected '{BEGIN}' and then '{END}', once each")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    return f"{before}{BEGIN}\n\n{figures(documents)}\n\n{END}{after}"


def _table(document: Document) -> str:
    machine, versions = document.machine, document.versions
    name = machine.get("gpu") or f"{machine['threads']} cores of an {machine['cpu']}, {machine['cpu_capability']}"
    rows = [_row(case) for case in document.cases if case.size is None and fastest(case) and baseline(case)]
    return "\n".join([f"{name}; torch {versions['torch']}:", "", HEAD, *rows])


def _row(case: CaseResult) -> str:
    ours, other, memory = fastest(case), baseline(case), memory_ratio(case)
    assert ours is not None  # the caller looked
    assert other is not None
    speed = "-" if ours.speedup is None else describe_speedup(ours.speedup)
    cells = [f"{case.benchmark}: {case.case}", other.variant, speed, row_cells(ours)[0]]
    return (
        "| " + " | ".join([*cells, "-" if memory is None else f"{100 * memory:.{3 if memory >= 1 else 2}g} %"]) + " |"
    )
