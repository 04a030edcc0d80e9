from __future__ import annotations

from pathlib import Path

import pytest

from blip_fast.data.joined import JoinedData
from blip_fast.data.pretrain import PretrainData
from blip_fast.data.sampling import SampleKey
from blip_fast.data.transforms import eval_transform
from tests.data.conftest import Annotate


def test_parts_follow_each_other_and_hear_of_epochs(root: Path, annotate: Annotate) -> None:
    def file(name: str, *captions: str) -> Path:
        return annotate([{"image": "a.png", "caption": caption} for caption in captions], name)

    first = PretrainData([file("1.json", "one", "two")], root, eval_transform(8))
    second = PretrainData([], root, eval_transform(8), rotating=[file("2.json", "x"), file("3.json", "y", "z")])
    data = JoinedData([first, second])
    assert [data[n].caption for n in range(len(data))] == ["one", "two", "x"]
    data.set_epoch(1)
    assert [data[SampleKey(n, 5)].caption for n in range(len(data))] == ["one", "two", "y", "z"]
    assert data[-1].caption == "z"
    assert data.collate([data[0], data[2]]).captions == ("one", "y")
    with pytest.raises(IndexError):
        data[4]
    with pytest.raises(ValueError, match="parts is empty"):
        JoinedData([])
