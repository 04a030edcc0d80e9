"""From inputs to records: pictures are decoded ahead, captioned in batches, and written as they are done."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterable, Iterator

from blip_fast.inference.captions import Captioning
from blip_fast.inference.inputs import Input, Inputs
from blip_fast.inference.memory import batch_size_for
from blip_fast.inference.pictures import picture_batches
from blip_fast.inference.progress import PictureProgress
from blip_fast.inference.records import ProblemFile, RecordFile

_HANDFUL = 4


def caption_all(
    inputs: Inputs,
    captioning: Captioning,
    records: RecordFile,
    problems: ProblemFile,
    progress: PictureProgress,
    batch_size: int | None = None,
    workers: int | None = None,
) -> None:
    """Write a record or a problem for each input that has no record yet.

    ``batch_size`` is :func:`batch_size_for` unless it is given, ``workers`` :func:`decoding_workers`.
    """
    model, done = captioning.model, frozenset(records.done)
    weight = model.visual_encoder.cls_token
    if batch_size is None:
        batch_size = batch_size_for(model.config, weight.device, weight.dtype, captioning.copies, captioning.max_length)
    workers = decoding_workers(inputs) if workers is None else workers
    wanted = remaining(inputs, done)
    batches = iter(picture_batches(wanted, model.config.image_size, batch_size, workers, weight.is_cuda))

    def count() -> None:
        progress.expect(sum(1 for _ in remaining(inputs, done)))

    # After the workers have been started: a process that forks should have one thread.
    threading.Thread(target=count, daemon=True).start()
    for batch in batches:
        records.write(captioning.records(batch.names, batch.pixels))
        problems.write(batch.problems)
        progress.advance(len(batch.names), len(batch.problems))


def remaining(inputs: Iterable[Input], done: Iterable[str]) -> Iterator[Input]:
    """Inputs of which no record exists, each once."""
    seen = set(done)
    for item in inputs:
        if item.name not in seen:
            seen.add(item.name)
            yield item


def decoding_workers(inputs: Iterable[object]) -> int:
    """Processes that decode pictures: half of the cores, 8 at most; none for a handful, which they would only delay."""
    if len(list(itertools.islice(inputs, _HANDFUL + 1))) <= _HANDFUL:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores // 2, 8))
