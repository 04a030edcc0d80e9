from __future__ import annotations

import errno
import io
import itertools
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from blip_fast.data import tar_index as tar_index_module
from blip_fast.data.bad_samples import BadSamples
from blip_fast.data.loader import make_loader
from blip_fast.data.pictures import BrokenSampleError
from blip_fast.data.sampling import EpochSampler
from blip_fast.data.shard_samples import caption_of
from blip_fast.data.shards import ShardData, shard_files
from blip_fast.data.tar_index import INDEX_SUFFIX, make_index, tar_index, tar_members
from blip_fast.data.transforms import eval_transform, train_transform
from blip_fast.inference.inputs import Inputs

Files = dict[str, bytes]


def picture(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write_shard(path: Path, files: Files) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def samples(start: int, count: int) -> Files:
    numbers = range(start, start + count)
    return {
        name: data
        for n in numbers
        for name, data in ((f"{n:04d}.png", picture(10 * n)), (f"{n:04d}.txt", f"Number {n}.".encode()))
    }


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    return [write_shard(tmp_path / f"web-{n:03d}.tar", samples(4 * n, 4)) for n in range(3)]


def test_samples_of_all_shards_are_found_in_order(shards: list[Path]) -> None:
    data = ShardData([shards[0].parent / "web-{000..002}.tar"], eval_transform(8))
    assert len(data) == 12
    assert [data[n].caption for n in (0, 3, 4, 11)] == ["number 0", "number 3", "number 4", "number 11"]
    reds = [float(data[n].image[0].mean()) for n in range(12)]
    assert reds == sorted(reds)
    batch = data.collate([data[5], data[6]])
    assert batch.captions == ("number 5", "number 6")
    assert batch.texts.cu_seqlens.tolist() == [0, 4, 8]


def test_ranks_share_all_samples_and_go_on_anywhere_with_any_number_of_workers(shards: list[Path]) -> None:
    data = ShardData(shards, train_transform(8))

    def epoch(rank: int, workers: int, start: int = 0) -> list[tuple[tuple[str, ...], torch.Tensor]]:
        sampler = EpochSampler(len(data), 2, seed=1, rank=rank, world_size=2)
        sampler.set_epoch(3, start)
        return [(batch.captions, batch.images) for batch in make_loader(data, sampler, workers)]

    first, second = epoch(0, 0), epoch(1, 2)
    assert {caption for captions, _ in first + second for caption in captions} == {f"number {n}" for n in range(12)}
    rest = epoch(0, 2, start=1)
    assert [captions for captions, _ in rest] == [captions for captions, _ in first[1:]]
    assert all(torch.equal(a[1], b[1]) for a, b in zip(rest, first[1:], strict=True))


def test_an_index_is_kept_beside_the_shard_until_the_shard_changes(
    shards: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = make_index(shards[0])
    tar_index(shards[0])
    assert (shards[0].parent / (shards[0].name + INDEX_SUFFIX)).is_file()
    with monkeypatch.context() as patch:
        patch.setattr(tar_index_module, "make_index", None)  # not called
        kept = tar_index(shards[0])
    assert np.array_equal(kept.places, expected.places)
    assert kept.keys.tolist() == ["0000", "0001", "0002", "0003"]
    write_shard(shards[0], samples(20, 5))
    assert tar_index(shards[0]).keys.tolist() == ["0020", "0021", "0022", "0023", "0024"]
    beside = shards[0].with_name(shards[0].name + INDEX_SUFFIX)
    beside.write_bytes(beside.read_bytes()[:100])
    assert len(tar_index(shards[0])) == 5


def test_a_folder_that_cannot_be_written_keeps_no_index(shards: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)
    assert len(tar_index(shards[0])) == 4
    assert not (shards[0].parent / (shards[0].name + INDEX_SUFFIX)).exists()


def test_captions_come_from_texts_or_json(tmp_path: Path) -> None:
    files = {
        "a.json": json.dumps({"caption": "from json"}).encode(),
        "a.jpg": picture(1),
        "b.png": picture(2),
        "b.json": json.dumps({"caption": "not this"}).encode(),
        "b.txt": b"from text",
        "c.png": picture(3),
        "c.json": b"[]",
    }
    data = ShardData([write_shard(tmp_path / "x.tar", files)], eval_transform(8))
    assert [data[0].caption, data[1].caption] == ["from json", "from text"]
    assert data[2].broken == (f"{tmp_path / 'x.tar'}, c: its JSON holds no 'caption'",)
    assert caption_of(b'{"text": "x"}', True) == "x"
    assert caption_of(b"{", True) is None
    assert caption_of(b"[" * 100_000, True) is None


def test_incomplete_samples_and_broken_pictures_are_counted(tmp_path: Path) -> None:
    files = samples(0, 2) | {"a.txt": b"alone", "b.png": b"no picture", "b.txt": b"text", "c.png": picture(1)}
    shard = write_shard(tmp_path / "x.tar", files)
    with pytest.raises(RuntimeError, match=r"2 samples cannot be read"):
        ShardData([shard], eval_transform(8))
    bad = BadSamples(2)
    data = ShardData([shard], eval_transform(8), bad=bad)
    assert list(bad.messages) == [f"{shard}, a: has no picture, only txt", f"{shard}, c: has no text, only png"]
    assert len(data) == 3
    assert data[2].caption == "number 0"
    assert data[2].broken[0].startswith(f"{shard}, b: ")
    with pytest.raises(BrokenSampleError, match=r"x\.tar, b: "):
        ShardData([shard], eval_transform(8), bad=BadSamples(2), on_broken="raise")[2]


def test_an_input_error_is_no_damage_and_leaves_no_index(shards: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(shard: Path) -> Iterator[tarfile.TarInfo]:
        yield from itertools.islice(tar_members(shard), 3)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(tar_index_module, "tar_members", failing)
    with pytest.raises(OSError, match="Input/output error"):
        tar_index(shards[0])
    assert not shards[0].with_name(shards[0].name + INDEX_SUFFIX).exists()


def test_a_shard_that_is_cut_off_gives_what_is_whole(shards: list[Path]) -> None:
    shards[1].write_bytes(shards[1].read_bytes()[: 5 * 1024 + 600])  # header and content have 512 bytes each
    bad = BadSamples(1)
    whole = ShardData(shards, eval_transform(8), bad=bad)
    assert "web-001.tar: is damaged after 0006" in next(iter(bad.messages))
    assert len(whole) == 8 + 2
    for number in range(len(whole)):
        assert not whole[number].broken


def header(name: bytes, size: bytes, kind: bytes) -> bytes:
    """A header with a right checksum, whatever its size field says."""
    block = bytearray(tarfile.TarInfo().tobuf())
    block[: len(name)], block[124:136], block[156:157], block[148:156] = name, size, kind, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def number(value: int) -> bytes:
    """A size in base 256."""
    return b"\x80" + value.to_bytes(11, "big") if value >= 0 else value.to_bytes(12, "big", signed=True)


SPARSE = b"22 GNU.sparse.map=1,x\n"
BAD_HEADERS = {
    "backwards": header(b"2.png", number(-512), tarfile.REGTYPE),
    "less than nothing": header(b"2.png", number(-1), tarfile.REGTYPE),
    "an unknown kind backwards": header(b"2.png", number(-512), b"V"),
    "an unknown kind beyond all files": header(b"2.png", number(2**70), b"V"),
    "attributes beyond all files": header(b"2.png", number(2**70), tarfile.XHDTYPE),
    "attributes backwards": header(b"2.png", number(-512), tarfile.XHDTYPE),
    "a name beyond all files": header(b"2.png", number(2**70), tarfile.GNUTYPE_LONGNAME),
    "a map of no numbers": header(b"2.png", number(len(SPARSE)), tarfile.XHDTYPE)
    + SPARSE.ljust(512, b"\0")
    + header(b"2.png", number(0), tarfile.REGTYPE),
}


@pytest.mark.parametrize("bad", BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_headers_that_cannot_be_true(tmp_path: Path, bad: bytes) -> None:
    path = tmp_path / "x.tar"
    whole = write_shard(path, samples(0, 2)).read_bytes()[: 8 * 512]
    path.write_bytes(whole + bad + bytes(1024))
    index = make_index(path)
    assert index.keys.tolist() == ["0000"]  # the second could have had another file
    assert [line.startswith(f"{path}: is damaged after 0001: ") for line in index.problems] == [True]
    path.write_bytes(bad + bytes(1024))
    found = list(itertools.islice(Inputs([str(path)]), 3))
    assert [item.problem is None for item in found] == [False]


def test_links_and_folders_in_a_shard_are_passed_over(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, kind in (("0.png", tarfile.SYMTYPE), ("0.txt", tarfile.DIRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    with pytest.raises(ValueError, match="hold no samples"):
        ShardData([tmp_path / "x.tar"], eval_transform(8))


def test_what_is_no_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="stands for no file"):
        shard_files([tmp_path / "web-*.tar"])
    (tmp_path / "x.tar").write_bytes(b"text" * 1000)
    with pytest.raises(ValueError, match=r"x\.tar is no uncompressed tar file"):
        ShardData([tmp_path / "x.tar"], eval_transform(8))
