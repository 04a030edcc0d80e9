"""Which emoji are for training, validation and test, and noisy "web" texts for those of training."""

from __future__ import annotations

import collections
import random
import re
from collections.abc import Sequence

from blip_fast.data.emoji.names import Emoji, keywords_of

SEED = 20240
SPLITS = ("train", "val", "test")
MOVED_SHARE = 0.3  # of the web texts stand beside another picture


def assign_splits(emoji: Sequence[Emoji], draw: random.Random) -> list[str]:
    """The split of each emoji. Validation and test hold unseen combinations of a kind of person and a skin tone.

    Of each kind of at least four, a fifth goes to the test; of ten or more a tenth to validation, of five or more half the
    time one. All else is for training.

    Raises ValueError where a word of validation or test does not occur in training, or two captions are equal.
    """
    families: dict[str, list[int]] = collections.defaultdict(list)
    for number, one in enumerate(emoji):
        if one.family is not None:
            families[one.family].append(number)
    splits = ["train"] * len(emoji)
    for members in families.values():
        draw.shuffle(members)
        size = len(members)
        tests = max(1, round(size * 0.2)) if size >= 4 else 0
        if size >= 10:
            validations = round(size * 0.1)
        else:
            validations = int(draw.random() < 0.5) if size >= 5 else 0
        for place, number in enumerate(members[: tests + validations]):
            splits[number] = "test" if place < tests else "val"
    _check(emoji, splits)
    return splits


def web_texts(emoji: Sequence[Emoji], keywords: dict[str, str], draw: random.Random) -> list[tuple[str, bool]]:
    """Keywords of each emoji as web text, 30 % of them moved on to another emoji; and whether text and picture match."""
    texts = [keywords_of(one, keywords) for one in emoji]
    moved = sorted(draw.sample(range(len(texts)), int(MOVED_SHARE * len(texts))))
    result = list(texts)
    for number, source in zip(moved, moved[1:] + moved[:1], strict=True):
        result[number] = texts[source]
    return [(text, text == own) for text, own in zip(result, texts, strict=True)]


def _check(emoji: Sequence[Emoji], splits: Sequence[str]) -> None:
    seen = set().union(*(_words(one) for one, split in zip(emoji, splits, strict=True) if split == "train"))
    for one, split in zip(emoji, splits, strict=True):
        if split != "train" and not _words(one) <= seen:
            raise ValueError(f"{one.name!r} of the {split} split has a word that training lacks")
    twice = [name for name, count in collections.Counter(one.name for one in emoji).items() if count > 1]
    if twice:
        raise ValueError(f"{twice[0]!r} is the name of two emoji")


def _words(emoji: Emoji) -> set[str]:
    return set(re.findall(r"[\w-]+", emoji.name.lower()))
