"""What is found in lists and shards, and what is wrong with it."""

from __future__ import annotations

import gzip
import json
import os
import tarfile

import pytest

from blip_fast.capfilt import samples as samples_module
from blip_fast.capfilt.samples import read_samples
from blip_fast.capfilt.units import list_units
from blip_fast.data.demo_pairs import demo_root
from blip_fast.data.pictures import BrokenSampleError
from blip_fast.data.roots import Root
from tests.capfilt.common import demo_entries, shard_members, write_list, write_shard


def samples_of(path, unit_size=1000):
    return [sample for unit in list_units([path], unit_size) for sample in read_samples(unit)]


def test_a_list_falls_into_units_that_hold_each_entry_once(tmp_path):
    entries = [{"image": f"{number}.png", "caption": f"Füße {number}"} for number in range(10)]
    path = write_list(tmp_path / "web.json", entries)
    units = list_units([path], 4)
    assert [unit.entries for unit in units] == [4, 4, 2]
    assert [unit.name for unit in units] == ["000000", "000001", "000002"]
    samples = [sample for unit in units for sample in read_samples(unit)]
    assert [(sample.image, sample.text) for sample in samples] == [(e["image"], e["caption"]) for e in entries]
    assert [sample.number for sample in samples] == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]


def test_sources_are_folders_patterns_and_braces(tmp_path):
    for number in range(3):
        write_shard(tmp_path / f"web-{number}.tar", [])
    names = [os.path.join(tmp_path, f"web-{number}.tar") for number in range(3)]
    for source in (tmp_path, tmp_path / "web-*.tar", tmp_path / "web-{0..2}.tar"):
        assert [unit.source for unit in list_units([source], 5)] == names
    assert [unit.index for unit in list_units([names[2], names[0]], 5)] == [0, 1]
    brace = write_shard(tmp_path / "a{b.tar", [])
    assert [unit.source for unit in list_units([brace], 5)] == [brace]


@pytest.mark.parametrize("name", ["missing.json", "web-{0..3}.tar", "*.tar"])
def test_sources_that_are_not_there_are_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="there is no"):
        list_units([tmp_path / name], 5)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "web.csv").write_text("a,b")
    with pytest.raises(ValueError, match=r"neither a JSON list \(\.json\) nor a shard"):
        list_units([tmp_path / "web.csv"], 5)


def test_bad_entries_and_duplicates_are_told_apart(tmp_path):
    entries = [
        {"image": "a.png", "caption": "a cat"},
        "no object",
        {"caption": "no image"},
        {"image": 3, "caption": "x"},
        {"image": "a\0.png", "caption": "x"},
        {"image": "b.png", "caption": ["several"]},
        {"image": "c.png"},
        {"image": "d.png", "caption": None},
        {"image": "a.png", "caption": "another text"},
        {"image": "a.png", "caption": "a cat"},
        {"image": "e.png", "caption": "x", "key": 7},
        {"image": "f.png", "caption": "y", "key": "7"},
    ]
    samples = samples_of(write_list(tmp_path / "web.json", entries))
    problems = [None if sample.problem is None else sample.problem[0] for sample in samples]
    bad = "bad_entry"
    assert problems == [None, bad, bad, bad, bad, bad, None, None, None, "duplicate_key", None, "duplicate_key"]
    assert [samples[6].text, samples[7].text] == ["", ""]
    assert len({sample.key for sample in samples if sample.problem is None}) == 5


def test_shards_give_pictures_and_texts_of_all_kinds(tmp_path):
    picture = (demo_root() / demo_entries(1)[0]["image"]).read_bytes()
    members = [
        ("sub/one.png", picture),
        ("sub/one.txt", "Füße".encode()),
        ("two.JPG", picture),
        ("two.json", json.dumps({"caption": "from json"}).encode()),
        ("three.jpeg", picture),
        ("four.txt", b"no picture"),
        ("five.webp", b"broken"),
        ("five.caption", b"a caption"),
        ("five.json", b"{no json"),
        ("two.png", picture),
    ]
    samples = samples_of(write_shard(tmp_path / "web.tar", members))
    assert [sample.key for sample in samples] == ["sub/one", "two", "three", "four", "five", "two"]
    assert [sample.text for sample in samples] == ["Füße", "from json", "", "", "a caption", ""]
    assert [sample.suffix for sample in samples] == ["png", "jpg", "jpeg", "", "webp", "png"]
    assert [sample.problem and sample.problem[0] for sample in samples] == [
        None, None, None, "no_picture", None, "duplicate_key"]  # fmt: skip
    assert samples[0].picture(Root(tmp_path)).size == (136, 136)
    with pytest.raises(BrokenSampleError):
        samples[4].picture(Root(tmp_path))


def test_a_name_that_comes_again_at_once_begins_another_sample(tmp_path):
    members = shard_members(demo_entries(1)) * 2
    samples = samples_of(write_shard(tmp_path / "web.tar", members))
    assert [sample.problem and sample.problem[0] for sample in samples] == [None, "duplicate_key"]


def test_a_shard_that_is_cut_off_keeps_what_is_whole(tmp_path):
    path = tmp_path / "web.tar"
    write_shard(path, shard_members(demo_entries(4)))
    whole = samples_of(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    samples = samples_of(path)
    assert 1 <= len(samples) < 4
    assert samples[:-1] == [type(s)(**s.__dict__) for s in whole[: len(samples) - 1]]
    assert samples[-1].problem is not None
    assert samples[-1].problem[0] == "damaged_shard"


@pytest.mark.parametrize("suffix", [".tar", ".tgz"])
def test_a_damaged_header_is_not_taken_for_the_end(tmp_path, suffix):
    plain, path = tmp_path / "plain.tar", tmp_path / f"web{suffix}"
    write_shard(plain, shard_members(demo_entries(6)))
    content = plain.read_bytes()
    with tarfile.open(plain) as archive:
        header = [member.offset for member in archive][4]  # of 0002.png
    flipped = bytearray(content)
    flipped[header + 148] ^= 1
    sizes = [content[:header] + of_size(content[header:], size) for size in (-1024, 2**40, 2**70)]
    for damaged in (bytes(flipped), content[: header + 100], content[: header + 600], *sizes):
        path.write_bytes(damaged if suffix == ".tar" else gzip.compress(damaged))
        problems = [sample.problem and sample.problem[0] for sample in samples_of(path)]
        assert problems in ([None, "damaged_shard"], [None, None, "damaged_shard"])
    path.write_bytes(content if suffix == ".tar" else gzip.compress(content))
    assert [sample.problem for sample in samples_of(path)] == [None] * 6


def of_size(content: bytes, size: int) -> bytes:
    """Content that begins with a header, of which the size is changed and the checksum right."""
    changed = bytearray(content)
    changed[124:136] = (size % 2**95 | 2**95).to_bytes(12, "big")
    changed[124] |= 0xFF if size < 0 else 0
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed[:512])
    return bytes(changed)


@pytest.mark.parametrize("suffix", [".tar", ".tgz"])
def test_headers_that_tarfile_cannot_read_are_damage(tmp_path, suffix):
    path = tmp_path / f"web{suffix}"
    with tarfile.open(path, "w:gz" if suffix == ".tgz" else "w", format=tarfile.PAX_FORMAT) as archive:
        for values in ({}, {"GNU.sparse.map": "1,2,x"}):
            member = tarfile.TarInfo(f"{len(values)}.png")
            member.pax_headers = values
            archive.addfile(member)
    (sample,) = samples_of(path)
    assert sample.problem is not None
    assert sample.problem[0] == "damaged_shard"
    path.write_bytes(b"no shard" * 100)
    (sample,) = samples_of(path)
    assert sample.problem is not None
    assert sample.problem[0] == "damaged_shard"


@pytest.mark.parametrize("suffix", [".tar", ".tgz"])
def test_members_that_would_fill_memory_are_not_read(tmp_path, monkeypatch, suffix):
    plain, path = tmp_path / "plain.tar", tmp_path / f"web{suffix}"
    members = shard_members(demo_entries(3))
    large = max(len(data) for _, data in members) + 1
    write_shard(plain, [*members[:2], ("large.png", bytes(large)), ("large.txt", b"a text"), *members[2:]])
    path.write_bytes(plain.read_bytes() if suffix == ".tar" else gzip.compress(plain.read_bytes()))
    monkeypatch.setattr(samples_module, "MAX_BYTES", large - 1)
    samples = samples_of(path)
    assert [sample.problem and sample.problem[0] for sample in samples] == [None, "broken_picture", None, None]
    assert (samples[1].text, samples[1].data) == ("a text", None)


def test_no_member_is_skipped_for_its_name(tmp_path):
    members = [(f"__a__/{name}", data) for name, data in shard_members(demo_entries(2))]
    samples = samples_of(write_shard(tmp_path / "web.tar", members))
    assert [sample.key for sample in samples] == ["__a__/0000", "__a__/0001"]


def test_pictures_outside_of_the_root_are_not_read(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    outside = tmp_path / "secret.png"
    outside.write_bytes((demo_root() / demo_entries(1)[0]["image"]).read_bytes())
    (root / "link.png").symlink_to(outside)
    for image in ("../secret.png", str(outside), "link.png"):
        (sample,) = samples_of(write_list(tmp_path / "web.json", [{"image": image, "caption": "x"}]))
        with pytest.raises(BrokenSampleError, match="leads out of image_root"):
            sample.picture(Root(root))
    with pytest.raises(ValueError, match="a link that leads out of image_root"):
        sample.encoded(Root(root))
