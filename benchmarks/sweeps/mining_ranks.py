"""Hard negatives of 75 pairs, by the number of ranks whose candidates are gathered."""

from __future__ import annotations

from collections.abc import Iterable

from ..job import Case, Setting
from ..ops.hard_negatives import BATCH, mining_case
from .sweep import point

PLACE = 112
RANKS = (1, 8, 64)
MORE = (2, 4, 16, 32, 128)


def cases(setting: Setting) -> Iterable[Case]:
    """One rank to 64; with ``--full`` to 128."""
    for ranks in RANKS if setting.quick else sorted(RANKS + MORE):
        yield point(mining_case(ranks * BATCH, setting), "ranks", ranks)
