"""Data loaders: batches made by worker processes."""

from __future__ import annotations

import os
import signal
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from blip_fast.data.sampling import SampleKey
from blip_fast.sigterm import after_the_first


def make_loader(
    dataset: Dataset[Any],
    sampler: Sampler[list[SampleKey]],
    workers: int,
    device: torch.device | str = "cpu",
) -> DataLoader[Any]:
    """Batches of ``dataset``, made by its ``collate``, in page-locked memory where ``device`` is a GPU.

    ``workers`` processes work ahead; 0 makes batches in this process. The batches do not depend on ``workers``. Worker
    processes start with every epoch, so that a data set's ``set_epoch`` reaches them.
    """
    if workers < 0:
        raise ValueError(f"workers={workers} must not be negative")
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=dataset.collate,
        pin_memory=torch.device(device).type == "cuda",
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # for seeds that nothing here depends on: the model's generator stays as it is
    )


def start_worker(worker_id: int) -> None:
    """``worker_init_fn``: libraries use no threads of their own, as there is one worker per core.

    A first SIGTERM, which clusters send to all processes, is left to the main process: it saves the run's state and ends the
    workers, by a later one if they are stuck in a sample.
    """
    signal.signal(signal.SIGTERM, after_the_first(lambda: None))
    # Threads that OpenCV had in the parent do not exist in a forked child, which would wait for them.
    cv2.setNumThreads(0)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
