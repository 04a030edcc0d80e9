from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest

from blip_fast.data.records import PackedRecords


@dataclasses.dataclass(frozen=True)
class Item:
    name: str
    answers: tuple[str, ...]
    weights: tuple[float, ...]
    number: int


ITEMS = [Item("ä" * n, ("x", "y" * n), (0.1, n / 3), 2**40 + n) for n in range(5)]


def test_records_come_back_as_they_were() -> None:
    packed = PackedRecords(Item, iter(ITEMS))
    assert list(packed) == ITEMS
    assert packed[-1] == ITEMS[-1]
    assert packed[1:3] == ITEMS[1:3]
    assert len(packed) == 5
    assert pickle.loads(pickle.dumps(packed))[2] == copy.deepcopy(ITEMS[2])


def test_numbers_out_of_range_are_errors() -> None:
    with pytest.raises(IndexError):
        PackedRecords(Item, ITEMS)[5]
    assert len(PackedRecords(Item)) == 0
