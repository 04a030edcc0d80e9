"""Captions for benchmarks: their lengths and their form."""

from __future__ import annotations

import pytest
import torch

from blip_fast.benchmarks.captions import COCO_LENGTHS, MEAN_LENGTH, caption_lengths, padded_texts
from blip_fast.config import BlipConfig


def test_the_table_is_of_30000_captions_of_13_tokens():
    assert sum(COCO_LENGTHS.values()) == 30_000
    mean = sum(length * count for length, count in COCO_LENGTHS.items()) / 30_000
    assert mean == pytest.approx(MEAN_LENGTH, abs=0.05)


@pytest.mark.parametrize("count", [4, 75, 256])
def test_lengths_have_the_mean_of_the_table_and_follow_from_the_seed(count):
    lengths = caption_lengths(count, seed=3)
    assert lengths.shape == (count,)
    assert lengths.sum() == MEAN_LENGTH * count
    assert set(lengths.tolist()) <= set(COCO_LENGTHS)
    assert torch.equal(lengths, caption_lengths(count, seed=3))
    assert not torch.equal(lengths, caption_lengths(count, seed=4))


def test_texts_begin_and_end_as_the_tokenizer_makes_them():
    config = BlipConfig.tiny()
    ids, mask = padded_texts(torch.tensor([2, 5]), 6, config, seed=0)
    assert mask.tolist() == [[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0]]
    assert ids[0].tolist() == [config.cls_token_id, config.sep_token_id, 0, 0, 0, 0]
    assert ids[1, 0] == config.cls_token_id
    assert ids[1, 4] == config.sep_token_id
    assert (ids[1, 1:4] >= 1000).all()
    assert ids.max() < config.dec_token_id
