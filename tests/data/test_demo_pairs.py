from __future__ import annotations

import pytest

from blip_fast.data.demo_pairs import demo_pairs, demo_root
from blip_fast.data.transforms import eval_transform


def test_bundled_pairs_are_complete() -> None:
    train, test = (demo_pairs(split, eval_transform(16)) for split in ("train", "test"))
    assert (len(train), len(test)) == (182, 26)
    assert all(pairs.picture(index).size == (136, 136) for pairs in (train, test) for index in range(len(pairs)))
    assert not {record.image for record in train.records} & {record.image for record in test.records}
    assert not set(train.captions) & set(test.captions)
    words = {word for caption in train.captions for word in caption.split()}
    assert all(word in words for caption in test.captions for word in caption.split())


def test_bundled_photographs_can_be_read() -> None:
    photos = demo_pairs("photos", eval_transform(16))
    assert [photos[index].image.shape for index in range(len(photos))] == [(3, 16, 16)] * 9


def test_bundled_pictures_come_with_their_licences() -> None:
    assert "Noto Color Emoji" in (demo_root() / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert "UNICODE, INC. LICENSE" in (demo_root() / "LICENSE-UNICODE.txt").read_text(encoding="utf-8")
    assert "Apache License" in (demo_root().parent / "LICENSE-bert-vocab.txt").read_text(encoding="utf-8")


def test_unknown_split_is_named() -> None:
    with pytest.raises(ValueError, match="split='val'"):
        demo_pairs("val", eval_transform(16))
