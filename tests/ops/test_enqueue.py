"""enqueue_: a ring buffer of any size on every backend."""

from __future__ import annotations

import pytest
import torch

import blip_fast
from blip_fast.ops import enqueue_
from tests.ops.common import backends_of, device_of, dtypes_of

BACKENDS = pytest.mark.parametrize("backend", backends_of("enqueue_"))


def one_by_one(queue, features, start):
    """Rows written one after the other: the definition."""
    queue = queue.clone()
    for i, row in enumerate(features):
        queue[:, (start + i) % queue.shape[1]] = row.to(queue.dtype)
    return queue


@BACKENDS
@pytest.mark.parametrize(
    ("size", "count", "start"), [(12, 4, 8), (10, 4, 8), (7, 7, 3), (5, 13, 2), (1, 1, 0), (1003, 75, 990)]
)
def test_equals_writing_one_by_one(backend, size, count, start):
    device = device_of(backend)
    for queue_dtype in dtypes_of(backend):
        for dtype in dtypes_of(backend):
            queue = torch.randn(33, size).to(device, queue_dtype)
            features = torch.randn(count, 33).to(device, dtype)
            pointer = torch.tensor([start], device=device)
            expected = one_by_one(queue, features, start)
            with blip_fast.backend(backend):
                enqueue_(queue, features, pointer)
            assert torch.equal(queue, expected)
            assert pointer.tolist() == [(start + count) % size]


@BACKENDS
def test_ids(backend):
    device = device_of(backend)
    queue = torch.full((1, 6), -100, device=device)
    pointer = torch.tensor([4], device=device)
    with blip_fast.backend(backend):
        enqueue_(queue, torch.tensor([[2**40], [2], [3]], device=device), pointer)
    assert queue.tolist() == [[3, -100, -100, -100, 2**40, 2]]


@BACKENDS
def test_opcheck(backend):
    device = device_of(backend)
    args = (torch.randn(4, 10, device=device), torch.randn(3, 4, device=device), torch.tensor([8], device=device))
    with blip_fast.backend(backend):
        torch.library.opcheck(torch.ops.blip_fast.enqueue_.default, args)


@BACKENDS
def test_transposed_features_and_no_features(backend):
    device = device_of(backend)
    queue, pointer = torch.zeros(4, 6, device=device), torch.tensor([5], device=device)
    features = torch.randn(4, 2, device=device).T
    with blip_fast.backend(backend):
        enqueue_(queue, features, pointer)
        enqueue_(queue, features[:0], pointer)
    assert torch.equal(queue[:, 5], features[0])
    assert torch.equal(queue[:, 0], features[1])
    assert pointer.item() == 1


def test_compiles_without_a_graph_break():
    def step(queue, features, pointer):
        enqueue_(queue, features, pointer)
        return pointer + 0

    queue, pointer = torch.zeros(2, 3), torch.tensor([2])
    result = torch.compile(step, fullgraph=True, backend="aot_eager")(queue, torch.ones(2, 2), pointer)
    assert queue.tolist() == [[1, 0, 1], [1, 0, 1]]
    assert result.item() == 1


@pytest.mark.parametrize(
    ("queue", "features", "pointer", "message"),
    [
        (torch.zeros(4, 0), torch.ones(2, 4), torch.tensor([0]), "queue has shape"),
        (torch.zeros(6), torch.ones(2, 6), torch.tensor([0]), r"queue has shape \(6,\); expected a contiguous"),
        (torch.zeros(6, 4).T, torch.ones(2, 4), torch.tensor([0]), r"queue has shape \(4, 6\); expected a contiguous"),
        (torch.zeros(4, 6), torch.ones(4), torch.tensor([0]), r"features has shape \(4,\); expected \(N, 4\)"),
        (torch.zeros(4, 6), torch.ones(2, 4), torch.tensor([0, 1]), "pointer is torch.int64 of 2 elements"),
        (torch.zeros(4, 6), torch.ones(2, 5), torch.tensor([0]), r"expected \(N, 4\)"),
        (
            torch.zeros(4, 6),
            torch.ones(2, 4).long(),
            torch.tensor([0]),
            "features is torch.int64; expected floating point",
        ),
        (
            torch.zeros(4, 6).long(),
            torch.ones(2, 4).int(),
            torch.tensor([0]),
            "features is torch.int32; expected int64",
        ),
        (torch.zeros(4, 6).int(), torch.ones(2, 4).int(), torch.tensor([0]), "queue is torch.int32; expected floating"),
        (torch.zeros(4, 6), torch.ones(2, 4), torch.tensor([0.0]), "expected one int64 element"),
        (torch.zeros(4, 6), torch.ones(2, 4, device="meta"), torch.tensor([0]), "expected one device"),
    ],
)
def test_refuses(queue, features, pointer, message):
    with pytest.raises(ValueError, match=message):
        enqueue_(queue, features, pointer)
