from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from blip_fast.data.bad_samples import BadSamples
from blip_fast.data.pictures import BrokenSampleError
from blip_fast.data.tokens import tokenize
from blip_fast.data.video_retrieval import VideoRetrievalData
from tests.data.conftest import Annotate
from tests.data.videos import write_video


@pytest.fixture
def file(tmp_path: Path, annotate: Annotate) -> Path:
    write_video(tmp_path / "video1.mp4", 20)
    (tmp_path / "video2.mp4").write_text("no video")
    lines = [{"clip_name": f"video{n}", "caption": f"Caption number {n}."} for n in (1, 2, 3)]
    return annotate("\n".join(json.dumps(line) for line in lines), "msrvtt_test.jsonl")


def test_videos_are_frames_and_texts(file: Path) -> None:
    data = VideoRetrievalData(file, file.parent, 16, frames=4)
    batch = data.collate([data[0]])
    assert batch.videos.shape == (1, 4, 3, 16, 16)
    assert batch.clip_names == ("video1",)
    assert data.texts == ["caption number 1", "caption number 2", "caption number 3"]
    ids, mask = data.padded_texts()
    expected_ids, expected_mask = tokenize(data.texts, "retrieval")
    assert torch.equal(ids, expected_ids)
    assert torch.equal(mask, expected_mask)


def test_broken_videos_stop_or_are_counted(file: Path) -> None:
    with pytest.raises(BrokenSampleError, match=r"video2\.mp4: "):
        VideoRetrievalData(file, file.parent, 16)[1]
    data = VideoRetrievalData(file, file.parent, 16, on_broken="blank")
    batch = data.collate([data[number] for number in range(3)])
    assert [message.split(":")[0] for message in batch.broken] == ["video2.mp4", "video3.mp4"]
    assert batch.indices.tolist() == [0, 1, 2]
    assert torch.equal(batch.videos[1], batch.videos[2])
    bad = BadSamples(1)
    with pytest.raises(RuntimeError, match="2 samples cannot be read"):
        bad.add(batch.broken)


def test_names_out_of_the_root_are_refused(tmp_path: Path, annotate: Annotate) -> None:
    file = annotate([{"clip_name": "../x", "caption": "y"}])
    with pytest.raises(ValueError, match=r"path '\.\./x\.mp4' leads out of video_root="):
        VideoRetrievalData(file, tmp_path, 16)
    with pytest.raises(ValueError, match="expected 'raise' or 'blank'"):
        VideoRetrievalData(annotate([{"clip_name": "x", "caption": "y"}]), tmp_path, 16, on_broken="replace")
