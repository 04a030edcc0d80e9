"""Cross-attention, forward and backward, by number of texts per image."""

from __future__ import annotations

from collections.abc import Iterable

from ..job import Case, Setting
from .sweep import TOKENS_384, point, training_attention

PLACE = 114
TEXTS = (1, 4, 16)
MORE = (2, 8, 32, 64)


def cases(setting: Setting) -> Iterable[Case]:
    """Three sizes; with ``--full`` more and larger ones."""
    for size in TEXTS if setting.quick else sorted(TEXTS + MORE):
        yield point(training_attention(setting, keys=TOKENS_384, texts=size, tokens=13), "texts per image", size)
