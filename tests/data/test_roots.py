from __future__ import annotations

import os
from pathlib import Path

import pytest

from blip_fast.data.roots import Root


@pytest.mark.parametrize("path", ["../secret.png", "x/../../secret.png", "/etc/passwd", "a.png\0.png", "../imagesx/a"])
def test_paths_out_of_the_root_are_not_covered(root: Path, path: str) -> None:
    assert not Root(root).covers(path)


def test_detours_and_absolute_paths_within_the_root_are_covered(root: Path) -> None:
    assert Root(root).covers("x/../a.png")
    assert Root(root).covers(str(root / "a.png"))
    assert Root(root).file("x/../a.png") == str(root / "a.png")


def test_the_root_of_all_covers_every_absolute_path(root: Path) -> None:
    assert Root("/").covers("/etc/passwd")
    assert Root("/").file(str(root / "a.png")) == str(root / "a.png")


def test_links_out_of_the_root_are_refused(root: Path) -> None:
    os.symlink(root.parent / "secret.png", root / "link.png")
    with pytest.raises(ValueError, match="link that leads out of image_root"):
        Root(root).file("link.png")


def test_a_root_that_is_a_link_is_followed(root: Path) -> None:
    os.symlink(root, root.parent / "link")
    assert Root(root.parent / "link").file("a.png") == str(root / "a.png")


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"vg_root='.*gone' is not a folder"):
        Root(tmp_path / "gone", "vg_root")
