"""Cross-attention, forward and backward, by tokens per text."""

from __future__ import annotations

from collections.abc import Iterable

from ..job import Case, Setting
from .sweep import TOKENS_224, point, training_attention

PLACE = 113
LENGTHS = (4, 16, 64)
MORE = (1, 8, 32, 128)


def cases(setting: Setting) -> Iterable[Case]:
    """Three sizes; with ``--full`` more and larger ones."""
    for size in LENGTHS if setting.quick else sorted(LENGTHS + MORE):
        yield point(training_attention(setting, keys=TOKENS_224, texts=4, tokens=size), "tokens per text", size)
