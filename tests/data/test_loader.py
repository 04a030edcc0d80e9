from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from blip_fast.data.loader import make_loader, start_worker
from blip_fast.data.pretrain import PretrainBatch, PretrainData
from blip_fast.data.sampling import EpochSampler
from blip_fast.data.transforms import train_transform
from tests.data.conftest import Annotate


@pytest.fixture
def data(broken_root: Path, annotate: Annotate) -> PretrainData:
    names = ["a", "a", "b", "a", "c", "a", "a", "a"]
    entries = [{"image": f"{name}.png", "caption": f"number {n}"} for n, name in enumerate(names)]
    return PretrainData([annotate(entries)], broken_root, train_transform(8))


def batches(data: PretrainData, workers: int, start_batch: int = 0, seed: int = 3) -> list[PretrainBatch]:
    sampler = EpochSampler(len(data), 2, seed)
    sampler.set_epoch(1, start_batch)
    return list(make_loader(data, sampler, workers))


def same(first: Any, second: Any) -> bool:
    return torch.equal(first.images, second.images) and (first.captions, first.broken) == (
        second.captions,
        second.broken,
    )


def test_batches_do_not_depend_on_the_number_of_workers_or_on_what_was_drawn_before(data: PretrainData) -> None:
    torch.manual_seed(0)
    alone = batches(data, 0)
    torch.manual_seed(1)
    together = batches(data, 2)
    assert len(alone) == 4
    assert all(same(a, b) for a, b in zip(alone, together, strict=True))
    assert len({message for batch in alone for message in batch.broken}) == 2
    assert not same(batches(data, 0, seed=4)[0], alone[0])


def test_an_epoch_continued_is_the_epoch_uninterrupted(data: PretrainData) -> None:
    whole, rest = batches(data, 0), batches(data, 1, start_batch=2)
    assert len(rest) == 2
    assert all(same(a, b) for a, b in zip(whole[2:], rest, strict=True))


def test_loading_leaves_the_models_random_numbers_alone(data: PretrainData) -> None:
    before = torch.get_rng_state()
    batches(data, 0)
    batches(data, 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_texts_arrive_packed(data: PretrainData) -> None:
    (batch, *_) = batches(data, 1)
    assert batch.texts.exact
    assert batch.texts.cu_seqlens.tolist() == [0, 4, 8]


def test_workers_leave_a_first_sigterm_to_the_main_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later one, by which the main process ends them, ends also those that are stuck in a sample."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "")  # is put back
    before = signal.getsignal(signal.SIGTERM)
    try:
        start_worker(0)
        for _ in range(2):  # a cluster and a launcher send it at once
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, signal.SIG_IGN)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_bad_arguments_are_named(data: PretrainData) -> None:
    with pytest.raises(ValueError, match="workers=-1"):
        make_loader(data, EpochSampler(8, 2), -1)
