from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from blip_fast.data.nlvr import NLVRData, swap_sides
from blip_fast.data.sampling import SampleKey
from blip_fast.data.tokens import cached_tokenizer
from blip_fast.data.transforms import eval_transform
from tests.data.conftest import Annotate


def entry(
    sentence: str = "The left image is red.", label: Any = "True", images: Any = ("a.png", "c.png")
) -> dict[str, Any]:
    return {"images": list(images), "sentence": sentence, "label": label}


def test_batches_hold_pairs_sentences_and_labels(root: Path, annotate: Annotate) -> None:
    file = annotate([entry(), entry("Nothing!", "False", ("c.png", "b.png"))])
    data = NLVRData([file], root, eval_transform(8), swap=False)
    batch = data.collate([data[0], data[1]])
    assert batch.image_pairs.shape == (2, 2, 3, 8, 8)
    assert batch.image_pairs[0, 0, 0].mean() < batch.image_pairs[0, 1, 0].mean()
    assert batch.labels.tolist() == [1, 0]
    assert cached_tokenizer().decode(data[0].tokens) == "[CLS] the left image is red [SEP]"
    assert len(batch.texts) == 2


def test_half_of_the_pairs_trade_sides_with_the_words_for_them(root: Path, annotate: Annotate) -> None:
    file = annotate([entry("the left one is right of leftovers", "False")])
    straight = NLVRData([file], root, eval_transform(8), swap=False)[0]
    data = NLVRData([file], root, eval_transform(8))
    swapped = 0
    for seed in range(60):
        sample = data[SampleKey(0, seed)]
        assert sample.label == 0
        if torch.equal(sample.images, straight.images):
            assert sample.tokens == straight.tokens
            continue
        swapped += 1
        assert torch.equal(sample.images, straight.images.flip(0))
        assert cached_tokenizer().decode(sample.tokens) == "[CLS] the right one is left of leftovers [SEP]"
    assert 18 < swapped < 42


def test_sides_are_whole_words() -> None:
    assert swap_sides("left leftmost right, right") == "right leftmost right, left"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (entry(images=("a.png",)), "'images' is .*; expected two paths"),
        (entry(images=("a.png", "../secret.png")), "leads out of image_root"),
        (entry(label="true"), "'label' is 'true'; expected 'True' or 'False'"),
        (entry(label=True), "'label' is True"),
    ],
)
def test_bad_entries_are_named(root: Path, annotate: Annotate, bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NLVRData([annotate([bad])], root, eval_transform(8))
