"""Cross-attention, forward and backward, by tokens of an image: 224, 384 and 480 pixels, and videos of eight frames."""

from __future__ import annotations

from collections.abc import Iterable

from ..job import Case, Setting
from .sweep import point, training_attention

PLACE = 115
TOKENS = (197, 577, 901)
MORE = (50, 8 * 197, 8 * 577, 8 * 901)


def cases(setting: Setting) -> Iterable[Case]:
    """Three sizes; with ``--full`` more and larger ones."""
    for size in TOKENS if setting.quick else sorted(TOKENS + MORE):
        yield point(training_attention(setting, keys=size, texts=4, tokens=13), "image tokens", size)
