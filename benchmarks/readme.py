"""The table of figures in the project's README, made from the committed results."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from blip_fast.checkpoints.files import write_text

from .report import baseline, fastest, memory_ratio
from .results import CaseResult, Document
from .table import row_cells

BEGIN, END = "<!-- figures: written by `blip-fast bench readme` -->", "<!-- end of figures -->"


def label_of(path: Path) -> str:
    """What the table calls the results in a file: ``results/cpu_zen4.json`` is "zen4"."""
    return path.stem.removeprefix("cpu_")


def figures(documents: Mapping[str, Document]) -> str:
    """A table for each kind of device, in Markdown: the fastest of our variants of each case against the baseline.

    ``documents`` are the results by the names that their columns get.
    """
    devices = dict.fromkeys(document.device for document in documents.values())
    return "\n\n".join(
        _table({label: document for label, document in documents.items() if document.device == device})
        for device in devices
    )


def put_figures(readme: Path, documents: Mapping[str, Document]) -> None:
    """Replace what stands between the marks in the file ``readme``. Raises ValueError where it has no marks."""
    text = with_figures(readme.read_text(encoding="utf-8"), documents)
    write_text(readme, text)


def with_figures(text: str, documents: Mapping[str, Document]) -> str:
    """``text`` with the figures between its marks."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"the text has no pair of marks; expected '{BEGIN}' and then '{END}', once each")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    return f"{before}{BEGIN}\n\n{figures(documents)}\n\n{END}{after}"


def _table(documents: Mapping[str, Document]) -> str:
    """One row per case and, for each of the machines, what was measured there; of memory the largest ratio."""
    measured = [{_name(case): case for case in document.cases if _shown(case)} for document in documents.values()]
    names = list(dict.fromkeys(name for cases in measured for name in cases))
    heads = [
        "case",
        "against",
        *(cell for label in documents for cell in (label, "median")),
        "extra memory",
    ]
    rows = [_row(name, [cases.get(name) for cases in measured]) for name in names]
    machines = "; ".join(f"{label}: {_machine(document)}" for label, document in documents.items())
    return "\n".join([f"{machines}:", "", _line(heads), "|" + "---|" * len(heads), *rows])


def _shown(case: CaseResult) -> bool:
    return case.size is None and fastest(case) is not None and baseline(case) is not None


def _name(case: CaseResult) -> str:
    return f"{case.benchmark}: {case.case}"


def _row(name: str, cases: Sequence[CaseResult | None]) -> str:
    there = [case for case in cases if case is not None]
    against = [other.variant for case in there if (other := baseline(case)) is not None]
    memory = max((ratio for case in there if (ratio := memory_ratio(case)) is not None), default=None)
    share = "-" if memory is None else f"{100 * memory:.{3 if memory >= 1 else 2}g} %"
    return _line([name, against[0], *(cell for case in cases for cell in _cells(case)), share])


def _cells(case: CaseResult | None) -> list[str]:
    ours = None if case is None else fastest(case)
    if ours is None:
        return ["-", "-"]
    median, _, _, speedup, *_ = row_cells(ours)
    return [speedup, median]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _short(document: Document) -> str:
    """The name of a document's machine, without what manufacturers put into it."""
    name = document.machine.get("gpu") or document.machine["cpu"]
    return " ".join(re.sub(r"\((R|TM)\)|\bProcessor\b", " ", name).split())


def _machine(document: Document) -> str:
    machine, torch = document.machine, document.versions["torch"]
    if machine.get("gpu"):
        return f"{_short(document)}, torch {torch}"
    return f"{machine['threads']} cores of an {_short(document)} ({machine['cpu_capability']}), torch {torch}"
