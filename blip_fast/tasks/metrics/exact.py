"""Scores of captions of small sets with one truth each: CIDEr, and how many are the true one to the word."""

from __future__ import annotations

from collections.abc import Sequence

from blip_fast.tasks.metrics.captions import caption_scores


def score_captions(written: Sequence[str], true: Sequence[str]) -> dict[str, float]:
    """CIDEr and share of captions that are the true one to the word, both in per cent."""
    scores = caption_scores(dict(enumerate(written)), {n: [text] for n, text in enumerate(true)}, use_java=False)
    exact = [same_words(*texts) for texts in zip(written, true, strict=True)]
    return {"CIDEr": 100 * scores.metrics["CIDEr"], "exact": 100 * sum(exact) / len(exact)}


def same_words(first: str, second: str) -> bool:
    """Whether two texts are the same but for spaces, punctuation and capitals."""
    a, b = ("".join(sign for sign in text.lower() if sign.isalnum()) for text in (first, second))
    return a == b
