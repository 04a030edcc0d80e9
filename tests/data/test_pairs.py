from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from blip_fast.data.demo_pairs import demo_pairs, demo_root
from blip_fast.data.pairs import BrokenImageError, PairDataset, collate_pairs
from blip_fast.data.transforms import eval_transform


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number, name in enumerate(("a.png", "b.png", "c.png")):
        Image.new("RGB", (20, 10), (80 * number, 0, 0)).save(folder / name)
    Image.new("RGB", (20, 10)).save(tmp_path / "secret.png")
    return folder


def annotate(root: Path, entries: Any) -> Path:
    file = root.parent / "pairs.json"
    file.write_text(entries if isinstance(entries, str) else json.dumps(entries), encoding="utf-8")
    return file


def dataset(root: Path, entries: Any, **options: Any) -> PairDataset:
    return PairDataset([annotate(root, entries)], root, eval_transform(8), **options)


def pair(image: Any, caption: Any = "A cat.") -> dict[str, Any]:
    return {"image": image, "caption": caption}


def test_samples_are_images_and_clean_captions(root: Path) -> None:
    pairs = dataset(root, [pair("a.png"), pair("b.png", "One two THREE four!") | {"image_id": 7}], max_words=3)
    assert len(pairs) == 2
    assert pairs[0].image.shape == (3, 8, 8)
    assert pairs[1].caption == "one two three"
    assert [record.image_id for record in pairs.records] == ["a.png", "7"]


def test_several_files_follow_each_other(root: Path) -> None:
    first, second = root.parent / "1.json", root.parent / "2.json"
    first.write_text(json.dumps([pair("a.png", "first")]))
    second.write_text(json.dumps([pair("b.png", "second")]))
    assert PairDataset([first, second], root, eval_transform(8)).captions == ["first", "second"]


@pytest.mark.parametrize("path", ["../secret.png", "x/../../secret.png", "/etc/passwd", "a.png\0.png", "../imagesx/a"])
def test_paths_out_of_the_root_are_refused(root: Path, path: str) -> None:
    with pytest.raises(ValueError, match=r"entry 1: image .* leads out of image_root"):
        dataset(root, [pair("a.png"), pair(path)])


def test_links_out_of_the_root_are_refused(root: Path) -> None:
    os.symlink(root.parent / "secret.png", root / "link.png")
    pairs = dataset(root, [pair("link.png")])
    with pytest.raises(ValueError, match="link that leads out of image_root"):
        pairs[0]


def test_paths_within_the_root_may_take_detours(root: Path) -> None:
    pairs = dataset(root, [pair("x/../a.png"), pair(str(root / "b.png"))])
    assert pairs[1].image[0].mean() > pairs[0].image[0].mean()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("{not json", "pairs.json is not JSON"),
        ({"image": "a.png"}, "holds a dict; expected a list"),
        (["a.png"], "entry 0: is a str"),
        ([pair("a.png"), {"image": "a.png"}], "entry 1: 'caption' is None"),
        ([pair(3)], "entry 0: 'image' is 3"),
        ([pair("a.png", ["one", "two"])], "entry 0: 'caption' is"),
        ([], "hold no pairs"),
    ],
)
def test_malformed_annotations_name_file_and_entry(root: Path, entries: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataset(root, entries)


def break_pictures(root: Path) -> None:
    (root / "b.png").write_bytes((root / "b.png").read_bytes()[:50])
    (root / "c.png").write_text("no picture")


def test_a_broken_picture_is_replaced_and_named(root: Path) -> None:
    break_pictures(root)
    pairs = dataset(root, [pair("a.png", "good"), pair("b.png"), pair("c.png"), pair("gone.png")])
    batch = next(iter(DataLoader(pairs, batch_size=4, collate_fn=collate_pairs)))
    assert batch.captions == ["good"] * 4
    assert batch.indices.tolist() == [0, 0, 0, 0]
    assert {message.split(":")[0] for message in batch.broken} == {"b.png", "c.png", "gone.png"}


def test_evaluation_stops_at_a_broken_picture(root: Path) -> None:
    break_pictures(root)
    with pytest.raises(BrokenImageError, match=r"b\.png"):
        dataset(root, [pair("b.png"), pair("a.png")], skip_broken=False)[0]


def test_nothing_but_broken_pictures_is_an_error(root: Path) -> None:
    break_pictures(root)
    with pytest.raises(BrokenImageError, match="none of the 2 pictures"):
        dataset(root, [pair("b.png"), pair("c.png")])[0]


def test_decoded_pictures_are_kept_when_asked(root: Path) -> None:
    pairs = dataset(root, [pair("a.png")], keep_decoded=True)
    before = pairs[0].image
    (root / "a.png").unlink()
    assert torch.equal(pairs[0].image, before)


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
