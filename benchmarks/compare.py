"""Two results files side by side: what became slower, and what uses more memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .results import Document, Row

NOISY_BYTES = 4 << 20  # the count of memory on a CPU is right to a few MiB


@dataclasses.dataclass(frozen=True)
class Change:
    """One of our variants before and after. Ratios above 1 are worse; None where a file lacks the figure."""

    name: str
    time: float | None
    memory: float | None
    apart: bool  # whether the times lie apart: the 20 % to 80 % ranges do not touch

    def worse(self, threshold: float) -> bool:
        """Whether it is slower, or takes more memory, by more than the share ``threshold``, and not by noise."""
        slower = self.time is not None and self.apart and self.time > 1 + threshold
        return slower or (self.memory is not None and self.memory > 1 + threshold)


def changes(before: Document, after: Document) -> list[Change]:
    """Changes of the variants of role ``ours`` that both files measured."""
    old = dict(_ours(before))
    return [_change(name, old[name], row) for name, row in _ours(after) if name in old]


def lost(before: Document, after: Document) -> list[str]:
    """Names of the variants of ours that ``before`` measured and ``after`` did not, though it has their case."""
    cases = {(case.benchmark, case.case) for case in after.cases}
    measured = dict(_ours(after))
    kept = [case for case in before.cases if (case.benchmark, case.case) in cases]
    return [name for name, _ in _ours(dataclasses.replace(before, cases=kept)) if name not in measured]


def print_changes(found: list[Change], threshold: float, console: Console) -> None:
    """A table, what became worse in red."""
    table = Table(title="After over before: above 1 is worse", title_justify="left", title_style="bold")
    table.add_column("variant", overflow="fold")
    for head in ("time", "extra memory"):
        table.add_column(head, justify="right")
    for change in found:
        time = "-" if change.time is None else f"{change.time:.3f}" + ("" if change.apart else " (within noise)")
        memory = "-" if change.memory is None else f"{change.memory:.3f}"
        table.add_row(escape(change.name), time, memory, style="bold red" if change.worse(threshold) else "")
    console.print(table)


def _ours(document: Document) -> Iterator[tuple[str, Row]]:
    for case in document.cases:
        for row in case.rows:
            if row.role == "ours" and row.time is not None:
                yield f"{case.benchmark}: {case.case}: {row.variant}", row


def _change(name: str, before: Row, after: Row) -> Change:
    one, other = before.time, after.time
    assert one is not None  # _ours yields measured rows only
    assert other is not None
    apart = other.q20_s > one.q80_s or other.q80_s < one.q20_s
    old, new = before.peak_extra_bytes, after.peak_extra_bytes
    counted = old is not None and new is not None and max(old, new) > NOISY_BYTES
    return Change(name, other.median_s / one.median_s, new / max(old, 1) if counted else None, apart)  # type: ignore[operator, type-var]
