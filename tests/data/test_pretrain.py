from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from blip_fast.data import annotations
from blip_fast.data.packing import pack
from blip_fast.data.pretrain import PretrainData
from blip_fast.data.tokenizer import load_tokenizer, restrict_vocabulary
from blip_fast.data.tokens import tokenize
from blip_fast.data.transforms import eval_transform
from tests.data.conftest import Annotate


def pair(image: Any, caption: Any = "A cat.") -> dict[str, Any]:
    return {"image": image, "caption": caption}


def data_of(root: Path, file: Path, **options: Any) -> PretrainData:
    return PretrainData([file], root, eval_transform(8), **options)


def test_samples_are_pictures_and_clean_captions(root: Path, annotate: Annotate) -> None:
    file = annotate([pair("a.png"), pair("b.png", "One two THREE four!") | {"image_id": 7}])
    data = data_of(root, file, max_words=3)
    assert data[0].image.shape == (3, 8, 8)
    assert data[1].caption == "one two three"
    assert [record.image_id for record in data.records] == ["a.png", "7"]
    assert data.captions == ["a cat", "one two three"]
    assert data.picture(1).getpixel((0, 0)) == (80, 0, 0)


def test_batches_hold_the_captions_packed_as_published(root: Path, annotate: Annotate) -> None:
    captions = ["a cat", "two dogs " * 20, "x"]
    data = data_of(root, annotate([pair(f"{name}.png", text) for name, text in zip("abc", captions, strict=True)]))
    batch = data.collate([data[number] for number in range(3)])
    expected = pack(*tokenize([caption.strip() for caption in captions], "pretrain"))
    assert batch.images.shape == (3, 3, 8, 8)
    assert batch.texts.exact
    assert batch.texts.max_length == 30  # long captions are cut
    for name in ("input_ids", "positions", "cu_seqlens"):
        assert torch.equal(getattr(batch.texts, name), getattr(expected, name))
    assert batch.texts.cu_seqlens.dtype == torch.int32
    assert pickle.loads(pickle.dumps(data.collate)) is PretrainData.collate


def test_other_tokenizers_and_lengths_are_taken(root: Path, annotate: Annotate) -> None:
    tokenizer = restrict_vocabulary(load_tokenizer(), ["a cat on a mat"])
    data = data_of(root, annotate([pair("a.png", "a cat on a mat")]), tokenizer=tokenizer, max_tokens=5)
    assert data[0].tokens == tokenizer("a cat on")["input_ids"]


def test_full_paths_need_a_root_that_holds_them(root: Path, annotate: Annotate) -> None:
    file = annotate([pair(str(root / "b.png"))])
    assert data_of(Path("/"), file).picture(0).getpixel((0, 0)) == (80, 0, 0)
    other = root.parent / "other"
    other.mkdir()
    with pytest.raises(ValueError, match="leads out of image_root"):
        data_of(other, file)


def test_rotating_files_are_taken_in_turns_by_name(root: Path, annotate: Annotate) -> None:
    fixed = annotate([pair("a.png", "fixed")])
    second = annotate([pair("b.png", "second"), pair("c.png", "more")], "laion_2.json")
    first = annotate([pair("b.png", "first")], "laion_1.json")
    data = PretrainData([fixed], root, eval_transform(8), rotating=[second, first])
    seen = [data.captions]
    for epoch in (1, 2):
        data.set_epoch(epoch)
        seen.append(data.captions)
    assert seen == [["fixed", "first"], ["fixed", "second", "more"], ["fixed", "first"]]
    assert data[1].caption == "first"
    alone = PretrainData([], root, eval_transform(8), rotating=[first])
    assert alone.captions == ["first"]
    with pytest.raises(ValueError, match="hold no entries"):
        PretrainData([], root, eval_transform(8))


def test_a_rotating_file_is_read_when_its_turn_comes(
    root: Path, annotate: Annotate, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, reads = annotations.read_list, []
    monkeypatch.setattr(annotations, "read_list", lambda file: reads.append(file.name) or read(file))
    files = [annotate([pair("a.png")], name) for name in ("1.json", "2.json")]
    data = PretrainData([], root, eval_transform(8), rotating=files)
    for epoch in (0, 0, 1, 1, 2):
        data.set_epoch(epoch)
    assert reads == ["1.json", "2.json", "1.json"]


def test_released_lists_without_pictures_are_refused(root: Path, annotate: Annotate) -> None:
    file = annotate(json.dumps([{"url": "http://x/1.jpg", "caption": "a cat"}]))
    with pytest.raises(ValueError, match="entry 0: 'image' is None; expected a non-empty string"):
        data_of(root, file)
