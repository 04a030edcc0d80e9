"""Captions that are the true one to the word."""

from __future__ import annotations

import pytest

from blip_fast.tasks.metrics.exact import same_words, score_captions


def test_same_words_are_found_through_punctuation() -> None:
    assert same_words("woman medium - dark skin tone, red hair", "woman: medium-dark skin tone, red hair")
    assert not same_words("woman", "women")


def test_both_scores_are_in_per_cent() -> None:
    true = ["a red cat on a mat", "a blue dog in a house", "two birds over the sea"]
    assert score_captions(true, true) == {"CIDEr": pytest.approx(1000), "exact": 100}
    scores = score_captions(["A red cat, on a mat!", "nothing alike", "nor this one"], true)
    assert scores["exact"] == pytest.approx(100 / 3)
    assert 0 < scores["CIDEr"] < 1000
