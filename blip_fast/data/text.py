"""The clean-up that the published BLIP applies to captions and questions before tokenisation."""

from __future__ import annotations

import re

_PUNCTUATION = re.compile(r"([.!\"()*#:;~])")
_SPACES = re.compile(r"\s{2,}")


def _first_words(text: str, max_words: int) -> str:
    if max_words < 1:
        raise ValueError(f"max_words={max_words} must be at least 1")
    return " ".join(text.split(" ")[:max_words])


def pre_caption(caption: str, max_words: int = 50) -> str:
    """Lower-case a caption, turn ``.!"()*#:;~`` into spaces, merge white space, keep the first ``max_words`` words.

    Published values of ``max_words``: 30 for pre-training, retrieval and captions, 40 for NLVR2 and video.
    """
    caption = _PUNCTUATION.sub(" ", caption.lower())
    caption = _SPACES.sub(" ", caption).rstrip("\n").strip(" ")
    return _first_words(caption, max_words)


def pre_question(question: str, max_words: int = 50) -> str:
    """Lower-case a question, delete ``.!"()*#:;~``, strip trailing spaces, keep the first ``max_words`` words."""
    question = _PUNCTUATION.sub("", question.lower()).rstrip(" ")
    return _first_words(question, max_words)
