from __future__ import annotations

from pathlib import Path

import pytest
import torch

from blip_fast.data.retrieval import RetrievalEvalData, RetrievalTrainData
from blip_fast.data.tokens import tokenize
from blip_fast.data.transforms import eval_transform
from tests.data.conftest import Annotate


def test_images_are_numbered_in_the_order_of_their_ids(root: Path, annotate: Annotate) -> None:
    entries = [
        {"image": "b.png", "caption": "one", "image_id": "coco_9"},
        {"image": "a.png", "caption": "two", "image_id": "coco_2"},
        {"image": "b.png", "caption": "three is longer", "image_id": "coco_9"},
    ]
    data = RetrievalTrainData([annotate(entries)], root, eval_transform(8))
    batch = data.collate([data[number] for number in (2, 1, 0)])
    assert batch.ids.tolist() == [0, 1, 0]
    ids, mask = tokenize(["three is longer", "two", "one"], "retrieval")
    assert torch.equal(batch.input_ids, ids)
    assert torch.equal(batch.attention_mask, mask)
    assert batch.input_ids.shape == (3, 35)
    assert torch.equal(batch.texts.input_ids, ids[mask.bool()])
    assert batch.images.shape == (3, 3, 8, 8)


def test_an_entry_without_an_id_is_an_error(root: Path, annotate: Annotate) -> None:
    with pytest.raises(ValueError, match="'image_id' is None; expected a whole number or a string"):
        RetrievalTrainData([annotate([{"image": "a.png", "caption": "x"}])], root, eval_transform(8))


def test_evaluation_knows_the_texts_of_images_and_the_images_of_texts(root: Path, annotate: Annotate) -> None:
    entries = [
        {"image": "a.png", "caption": ["One.", "Two!"]},
        {"image": "b.png", "caption": "Three"},
        {"image": "c.png", "caption": ["Four", "Five", "Six"]},
    ]
    data = RetrievalEvalData(annotate(entries), root, eval_transform(8))
    assert data.texts == ["one", "two", "three", "four", "five", "six"]
    assert data.image_of_text == [0, 0, 1, 2, 2, 2]
    assert data.texts_of_image == [[0, 1], [2], [3, 4, 5]]
    batch = data.collate([data[2], data[0]])
    assert batch.indices.tolist() == [2, 0]
    assert batch.images[0, 0].mean() > batch.images[1, 0].mean()
    ids, mask = data.padded_texts()
    expected_ids, expected_mask = tokenize(data.texts, "retrieval")
    assert torch.equal(ids, expected_ids)
    assert torch.equal(mask, expected_mask)
