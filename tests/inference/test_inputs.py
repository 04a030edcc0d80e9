"""Every way to name pictures, and names that lead nowhere."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from blip_fast.inference.inputs import InputError, Inputs
from blip_fast.inference.run import decoding_workers, remaining
from tests.inference.common import picture, pictures, shard


def names(*arguments: object, lines: tuple[str, ...] = (), allow_remote: bool = False) -> list[str]:
    inputs = Inputs([str(argument) for argument in arguments], lines, allow_remote)
    found = [item.name for item in inputs]
    assert [item.name for item in inputs] == found  # may be iterated again
    return found


def test_files_folders_patterns_and_lists(tmp_path: Path) -> None:
    one, two, three = map(str, pictures(tmp_path / "b", 3))
    deep = str(picture(tmp_path / "a" / "deep" / "x.JPG"))
    picture(tmp_path / "a" / ".hidden" / "y.jpg")
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    assert names(two, one) == [two, one]
    assert names(tmp_path) == [deep, one, two, three]
    assert names(tmp_path / "b" / "*.png") == [one, two, three]
    assert names(tmp_path / "b" / "**" / "*.png") == [one, two, three]
    assert names("-", lines=(two, "", str(tmp_path / "a"))) == [two, deep]
    odd = str(picture(tmp_path / "odd[1].png"))
    assert names(odd) == [odd]  # what exists is no pattern


def test_folders_come_before_what_is_deeper_and_in_order(tmp_path: Path) -> None:
    expected = [str(picture(tmp_path / name)) for name in ("b.png", "c.png", "a/z.png", "a/z/a.png")]
    assert names(tmp_path) == expected


def test_links_that_lead_in_circles(tmp_path: Path) -> None:
    path = str(picture(tmp_path / "a" / "x.png"))
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    assert names(tmp_path) == [str(tmp_path / "self.png"), path]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_unreadable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    (item,) = Inputs([str(tmp_path)])
    assert (item.name, item.problem) == (str(tmp_path / "closed"), "the folder cannot be read: Permission denied")


def test_shards(tmp_path: Path) -> None:
    content = picture(tmp_path / "x.png").read_bytes()
    path = shard(tmp_path / "0.tar", {"a/1.png": content, "a/1.txt": b"words", "../../etc/2.PNG": content})
    found = list(Inputs([str(path)]))
    assert [item.name for item in found] == [f"{path}::a/1.png", f"{path}::../../etc/2.PNG"]
    for item in found:
        assert item.size == len(content)
        assert path.read_bytes()[item.offset : item.offset + item.size] == content
    assert names(tmp_path) == [item.name for item in found] + [str(tmp_path / "x.png")]


def test_members_of_one_name(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name in ("a.png", "b.png", "a.png", "a.png"):
            tar.addfile(tarfile.TarInfo(name))
    path = str(tmp_path / "0.tar")
    found = list(remaining(Inputs([path]), ()))
    assert [item.name for item in found] == [
        f"{path}::a.png",
        f"{path}::b.png",
        f"{path}::a.png at byte 1536",
        f"{path}::a.png at byte 2048",
    ]
    assert [item.problem for item in found] == [None, None, *["has the name of a member before it"] * 2]


def test_a_file_that_vanishes_before_its_turn(tmp_path: Path) -> None:
    one, two = pictures(tmp_path, 2)
    inputs = Inputs([str(one), str(two), str(tmp_path / "*1.png")])
    one.unlink()
    assert [(item.name, item.problem) for item in inputs] == [
        (str(one), "is no longer there"),
        *[(str(two), None)] * 2,
    ]
    two.unlink()
    assert [item.problem for item in inputs] == ["is no longer there"] * 3


def test_links_in_shards_are_not_followed(tmp_path: Path) -> None:
    link = tarfile.TarInfo("link.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    assert names(shard(tmp_path / "0.tar", {"link.png": link, "a.png": b"x"})) == [f"{tmp_path / '0.tar'}::a.png"]


@pytest.mark.parametrize("damage", ["header", "cut"])
def test_damaged_shard_gives_what_stands_before_and_a_problem(tmp_path: Path, damage: str) -> None:
    content = picture(tmp_path / "x.png").read_bytes()
    path = shard(tmp_path / "0.tar", {f"{number}.png": content for number in range(3)})
    *_, last = Inputs([str(path)])
    whole = bytearray(path.read_bytes())
    header = last.offset - tarfile.BLOCKSIZE
    if damage == "header":
        whole[header : header + 200] = b"\xff" * 200
    else:
        del whole[header + 100 :]
    path.write_bytes(whole)
    first, second, problem = Inputs([str(path)])
    assert (first.problem, second.problem) == (None, None)
    assert problem.name == str(path)
    assert problem.problem == f"the shard cannot be read to its end: no header at byte {header}"


def test_no_shard_at_all(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(b"rubbish" * 200)
    (item,) = Inputs([str(tmp_path / "0.tar")])
    assert item.problem is not None
    assert item.problem.endswith("is no uncompressed tar file: invalid header")


def test_what_leads_nowhere(tmp_path: Path) -> None:
    for argument, message in (
        (str(tmp_path / "none.png"), "there is no '.*none.png'; expected a picture, a folder, a pattern, a shard"),
        (str(tmp_path / "*.png"), "there is no"),
        ("a\0b.png", "there is no"),
        ("https://example.org/a.jpg", "is an address; nothing is fetched without --allow-remote"),
        ("HTTP://example.org/a.jpg", "is an address"),
    ):
        with pytest.raises(InputError, match=message):
            names(argument)
        (item,) = Inputs(["-"], [argument])  # in a list it is the problem of one line
        assert item.name == argument
        assert item.problem is not None
    with pytest.raises(InputError, match="no pictures are given"):
        names()
    (tmp_path / "a.tar.gz").write_bytes(b"")
    with pytest.raises(InputError, match=r"is a compressed shard; expected \.tar"):
        names(tmp_path / "a.tar.gz")


def test_allowed_addresses_are_inputs() -> None:
    assert names("https://example.org/a.jpg?size=3", allow_remote=True) == ["https://example.org/a.jpg?size=3"]


def test_each_input_once_and_not_again(tmp_path: Path) -> None:
    one, two, three = map(str, pictures(tmp_path, 3))
    inputs = Inputs([three, str(tmp_path), one])
    assert [item.name for item in remaining(inputs, [two])] == [three, one]


def test_a_handful_needs_no_workers(tmp_path: Path) -> None:
    paths = [str(path) for path in pictures(tmp_path, 5)]
    assert decoding_workers(Inputs(paths[:4])) == 0
    assert decoding_workers(Inputs(paths)) >= 1
