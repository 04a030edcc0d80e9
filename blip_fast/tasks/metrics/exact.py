"""How many captions are right to the word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from blip_fast.data.text import pre_caption
from blip_fast.data.tokens import cached_tokenizer
from blip_fast.tasks.metrics.captions import ImageId


def exact_matches(captions: Mapping[ImageId, str], references: Mapping[ImageId, Sequence[str]]) -> float:
    """Share of the captions that are one of their image's references, token for token.

    Case, punctuation that training drops, and spaces around hyphens and commas do not count.
    """
    right = [
        _tokens(text) in [_tokens(reference) for reference in references[image]] for image, text in captions.items()
    ]
    return sum(right) / len(right)


def _tokens(text: str) -> list[str]:
    return cached_tokenizer().tokenize(pre_caption(text, max_words=len(text) + 1))
