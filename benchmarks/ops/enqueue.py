"""Enqueue of a batch of momentum features into a queue of 57,600 columns, against the published slice assignment.

The job reads N x E features and writes as many elements of the queue: 8 N E bytes in fp32, spread over E rows of the
queue. It is so small that the time is that of the calls, and on a GPU that of the published code's synchronisation.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from blip_fast.config import BlipConfig
from blip_fast.ops import enqueue_

from ..backends import backend_variants
from ..job import Aim, Case, Setting, Variant

PLACE = 60
BATCH = 75


def cases(setting: Setting) -> Iterable[Case]:
    """The published sizes: queue 256 x 57,600, batch 75, fp32."""
    config = BlipConfig.base()
    size = config.embed_dim * BATCH

    def inputs(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator(setting.device).manual_seed(seed)
        queue, features = (
            torch.randn(shape, generator=generator, device=setting.device)
            for shape in ((config.embed_dim, config.queue_size), (BATCH, config.embed_dim))
        )
        pointer = torch.tensor([config.queue_size - BATCH], device=setting.device)
        return queue, features, pointer

    yield Case(
        name=f"queue {config.embed_dim} x {config.queue_size}, batch {BATCH}, fp32",
        inputs=inputs,
        variants=[
            Variant("published slice", published_slice, role="baseline"),
            *backend_variants("enqueue_", ours, setting.device, cuda_graph=True),
        ],
        tolerance=0.0,
        bytes=2 * 4 * size,
        aims=[Aim(1.0, over="published slice")],
    )


def published_slice(queue: Tensor, features: Tensor, pointer: Tensor) -> tuple[Tensor, Tensor]:
    """The published code, which reads the pointer on the host and needs a queue that is a multiple of the batch."""
    start = int(pointer)
    queue[:, start : start + BATCH] = features.T
    pointer[0] = (start + BATCH) % queue.shape[1]
    return queue, pointer


def ours(queue: Tensor, features: Tensor, pointer: Tensor) -> tuple[Tensor, Tensor]:
    enqueue_(queue, features, pointer)
    return queue, pointer
