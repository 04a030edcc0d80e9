from __future__ import annotations

import random

import pytest

from blip_fast.data.emoji.names import Emoji
from blip_fast.data.emoji.splits import assign_splits, web_texts
from tests.data.emoji.debs import TONES


def family(kind: str, count: int) -> list[Emoji]:
    """So many persons of a kind, with pairs of skin tones."""
    pairs = [(first, second) for first in TONES for second in TONES]
    names = [f"{kind}: {first} skin tone, {second} skin tone" for first, second in pairs[:count]]
    return [Emoji(f"{kind}{n}", name, "People", "") for n, name in enumerate(names)]


def test_parts_of_large_families_are_held_out() -> None:
    emoji = family("kiss", 25) + family("couple", 4) + family("baby", 3) + [Emoji("t", "tree", "Nature", "")]
    splits = assign_splits(emoji, random.Random(1))

    def counts(first: int, last: int) -> tuple[int, ...]:
        return tuple(splits[first:last].count(split) for split in ("train", "val", "test"))

    assert (counts(0, 25), counts(25, 29), counts(29, 33)) == ((18, 2, 5), (3, 0, 1), (4, 0, 0))
    assert splits == assign_splits(emoji, random.Random(1))
    assert splits != assign_splits(emoji, random.Random(2))


def test_unseen_words_and_equal_names_are_errors() -> None:
    with pytest.raises(ValueError, match="has a word that training lacks"):
        assign_splits(
            [Emoji("x", f"only{n} {TONES[0]} skin tone"[4:], "", "") for n in range(1)] + _odd(), random.Random(0)
        )
    with pytest.raises(ValueError, match="'tree' is the name of two emoji"):
        assign_splits([Emoji("a", "tree", "", ""), Emoji("b", "tree", "", "")], random.Random(0))


def _odd() -> list[Emoji]:
    """A family of four whose members have a tone each that nobody else has."""
    return [Emoji(tone, f"queen: {tone} skin tone", "", "") for tone in TONES[1:]]


def test_a_third_of_the_web_texts_stands_beside_other_pictures() -> None:
    emoji = [Emoji(str(n), f"name {n}", "", "") for n in range(100)]
    texts = web_texts(emoji, {"3": "three"}, random.Random(0))
    assert sum(not match for _, match in texts) == 30
    assert sorted(text for text, _ in texts) == sorted(["three", *(f"name {n}" for n in range(100) if n != 3)])
    for n, (text, match) in enumerate(texts):
        assert match == (text == ("three" if n == 3 else f"name {n}"))
