from __future__ import annotations

import pytest

from blip_fast.data.text import pre_caption, pre_question


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("Person: light skin tone, red hair", "person light skin tone, red hair"),
        ('A (red) "umbrella"...  on #1 ~ ground!', "a red umbrella on 1 ground"),
        ("two\n\nlines\n", "two lines"),
        ("line one\nline two", "line one\nline two"),
        ("a-b / c; d'e?", "a-b / c d'e?"),
        ("", ""),
    ],
)
def test_pre_caption_cleans_as_published(raw: str, expected: str) -> None:
    assert pre_caption(raw) == expected


def test_pre_caption_cuts_after_the_last_allowed_word() -> None:
    assert pre_caption("One two. Three four", max_words=3) == "one two three"
    assert pre_caption(" ".join("abcdef"), max_words=6) == "a b c d e f"
    assert len(pre_caption("word " * 80).split(" ")) == 50


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("What is #1?", "what is 1?"),
        ("Is it 3.5 (or 4)?  ", "is it 35 or 4?"),
        ("  Leading, double  space", "  leading, double  space"),
        ('"Why" * : ~', "why"),
    ],
)
def test_pre_question_deletes_instead_of_replacing(raw: str, expected: str) -> None:
    assert pre_question(raw) == expected


def test_pre_question_cuts_words() -> None:
    assert pre_question("a b c d", max_words=2) == "a b"


@pytest.mark.parametrize("clean", [pre_caption, pre_question])
def test_max_words_must_be_positive(clean: object) -> None:
    with pytest.raises(ValueError, match="max_words=0"):
        clean("text", max_words=0)  # type: ignore[operator]
