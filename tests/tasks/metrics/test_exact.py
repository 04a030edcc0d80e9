"""Captions that are right to the word."""

from __future__ import annotations

import pytest

from blip_fast.tasks.metrics.exact import exact_matches


def test_case_punctuation_and_spacing_do_not_count() -> None:
    references = {1: ["Woman: medium-dark skin tone, curly hair"], 2: ["a cat", "the cat"], 3: ["a dog"]}
    captions = {1: "woman medium - dark skin tone, curly hair", 2: "the cat", 3: "a dog runs"}
    assert exact_matches(captions, references) == pytest.approx(2 / 3)
