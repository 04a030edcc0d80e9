from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from blip_fast.data.captions import CaptionEvalData
from blip_fast.data.pictures import BrokenSampleError, decode_picture
from blip_fast.data.pretrain import PretrainData
from blip_fast.data.sampling import SampleKey
from blip_fast.data.transforms import eval_transform, train_transform
from tests.data.conftest import Annotate

PAIRS = [{"image": f"{name}.png", "caption": name} for name in ("a", "b", "c", "gone")]


def pretrain_data(root: Path, annotate: Annotate, pairs: Any = PAIRS, **options: Any) -> PretrainData:
    return PretrainData([annotate(pairs)], root, eval_transform(8), **options)


def test_training_replaces_broken_pictures_and_names_them(broken_root: Path, annotate: Annotate) -> None:
    data = pretrain_data(broken_root, annotate)
    batch = next(iter(DataLoader(data, batch_size=4, collate_fn=data.collate)))
    assert batch.captions == ("a",) * 4
    assert batch.indices.tolist() == [0, 0, 0, 0]
    assert {message.split(":")[0] for message in batch.broken} == {"b.png", "c.png", "gone.png"}


def test_evaluation_stops_at_a_broken_picture_or_puts_a_black_one_there(broken_root: Path, annotate: Annotate) -> None:
    file = annotate([{"image": f"{name}.png", "image_id": name} for name in ("a", "b", "gone")])
    with pytest.raises(BrokenSampleError, match=r"b\.png"):
        CaptionEvalData(file, broken_root, eval_transform(8))[1]
    data = CaptionEvalData(file, broken_root, eval_transform(8), on_broken="blank")
    batch = data.collate([data[number] for number in range(3)])
    assert batch.image_ids == ("a", "b", "gone")
    assert [message.split(":")[0] for message in batch.broken] == ["b.png", "gone.png"]
    assert torch.equal(batch.images[1], batch.images[2])
    assert batch.images[1].mean() < 0


def test_loops_over_samples_end(root: Path, annotate: Annotate) -> None:
    data = pretrain_data(root, annotate, PAIRS[:3])
    assert [sample.caption for sample in data] == ["a", "b", "c"]
    assert data[-1].index == 2
    for number in (3, -4, 10**9):
        with pytest.raises(IndexError):
            data[number]


def test_nothing_but_broken_pictures_is_an_error(broken_root: Path, annotate: Annotate) -> None:
    with pytest.raises(BrokenSampleError, match="none of the 3 samples can be read; the first: b"):
        pretrain_data(broken_root, annotate, PAIRS[1:])[0]


def test_links_out_of_the_root_stop_the_run(root: Path, annotate: Annotate) -> None:
    (root / "link.png").symlink_to(root.parent / "secret.png")
    with pytest.raises(ValueError, match="link that leads out of image_root"):
        pretrain_data(root, annotate, [{"image": "link.png", "caption": "x"}])[0]


def test_a_keys_sample_repeats_whatever_was_drawn_before(root: Path, annotate: Annotate) -> None:
    data = PretrainData([annotate(PAIRS)], root, train_transform(8))
    torch.manual_seed(0)
    samples = [data[SampleKey(1, seed)].image for seed in (3, 4, 5, 3)]
    torch.rand(7)
    assert torch.equal(samples[0], data[SampleKey(1, 3)].image)
    assert torch.equal(samples[0], samples[3])


def test_decoded_pictures_are_kept_when_asked(root: Path, annotate: Annotate) -> None:
    data = pretrain_data(root, annotate, PAIRS[:1], keep_decoded=True)
    before = data[0].image
    (root / "a.png").unlink()
    assert torch.equal(data[0].image, before)


def test_unknown_treatment_of_broken_pictures_is_named(root: Path, annotate: Annotate) -> None:
    with pytest.raises(ValueError, match="on_broken='skip' is none of"):
        pretrain_data(root, annotate, on_broken="skip")


def test_pictures_are_decoded_from_bytes(root: Path) -> None:
    data = (root / "b.png").read_bytes()
    assert decode_picture(data, "x").getpixel((3, 3)) == (80, 0, 0)
    with pytest.raises(BrokenSampleError, match="shard 3, x: "):
        decode_picture(data[:50], "shard 3, x")
