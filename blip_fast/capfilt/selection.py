"""Which texts stay: a threshold on the matching probability, given or such that a share of all texts stays."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from blip_fast.capfilt.tally import Record, texts_of

_CHUNK = 65536
_HALF = 1 << 16


def read_records(path: Path) -> Iterator[Record]:
    """The records of a file, one per line."""
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def decide(record: Record, threshold: float) -> Record:
    """The record with a decision in each of its texts: ``kept``, and why one is dropped."""
    if "rejected" in record:
        return record
    web, *synthetic = (_decided(text, threshold) for _, text in texts_of(record))
    return record | {"web": web, "synthetic": synthetic, "threshold": threshold}


def _decided(text: Record, threshold: float) -> Record:
    if "dropped" not in text and text["itm"] < threshold:
        text = text | {"dropped": "below_threshold"}
    return text | {"kept": "dropped" not in text}


def threshold_of_fraction(read_all: Callable[[], Iterable[Record]], fraction: float) -> float:
    """The matching probability from which on a ``fraction`` of all texts lies; texts dropped before count as lowest.

    Exact, in constant memory and two passes over the records: non-negative floats are ordered as their bits are, so the
    first pass counts upper halves of bits and the second the lower halves under the right upper half. With ``fraction``
    times the number of texts rounded up to n, it is the n-th best score; 0 where fewer than n texts have one.
    """
    upper, texts = np.zeros(_HALF, np.int64), 0
    for chunk, dropped in _bits_of_scores(read_all()):
        upper += np.bincount(chunk >> 16, minlength=_HALF)
        texts += len(chunk) + dropped
    wanted = max(int(np.ceil(round(fraction * texts, 6))), 1)
    if texts == 0 or upper.sum() < wanted:
        return 0.0
    half, above = _place_from_the_top(upper, wanted)
    lower = np.zeros(_HALF, np.int64)
    for chunk, _ in _bits_of_scores(read_all()):
        lower += np.bincount(chunk[chunk >> 16 == half] & (_HALF - 1), minlength=_HALF)
    rest, _ = _place_from_the_top(lower, wanted - above)
    score = np.array([half << 16 | rest], np.uint32).view(np.float32)[0]
    return float(f"{score:.9g}")  # as records write it


def _place_from_the_top(counts: NDArray[np.int64], wanted: int) -> tuple[int, int]:
    """The place at which ``wanted`` are reached from the top, and how many lie above it."""
    reached = counts[::-1].cumsum()
    from_top = int(np.searchsorted(reached, wanted))
    return len(counts) - 1 - from_top, int(reached[from_top] - counts[::-1][from_top])


def _bits_of_scores(records: Iterable[Record]) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Bits of the matching probabilities as float32, in chunks, and how many texts without one came with them."""
    scores: list[float] = []
    without = 0
    for record in records:
        for _, text in () if "rejected" in record else texts_of(record):
            if "itm" in text:
                scores.append(text["itm"])
            else:
                without += 1
        if len(scores) >= _CHUNK:
            yield np.array(scores, np.float32).view(np.uint32).astype(np.int64), without
            scores, without = [], 0
    yield np.array(scores, np.float32).view(np.uint32).astype(np.int64), without
