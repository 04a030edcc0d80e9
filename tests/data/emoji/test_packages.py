from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from blip_fast.data.emoji.packages import (
    FONT,
    KEYWORDS,
    NAMES,
    PackageFile,
    download_packages,
    find_packages,
    read_file,
)
from tests.data.emoji.debs import CONTENTS, with_digest, write_deb, write_debs


def test_files_are_read_from_their_packages(tmp_path: Path) -> None:
    packages = find_packages(write_debs(tmp_path / "debs"))
    assert sorted(packages) == ["fonts-noto-color-emoji", "unicode-cldr-core", "unicode-data"]
    for file in (FONT, NAMES, *KEYWORDS):
        assert read_file(packages, with_digest(file)) == CONTENTS[file]


def test_other_versions_are_refused(tmp_path: Path) -> None:
    packages = find_packages(write_debs(tmp_path / "debs"))
    with pytest.raises(ValueError, match=r"emoji-test\.txt in .* is not that of unicode-data 15\.0\.0-1"):
        read_file(packages, NAMES)


def test_missing_packages_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no fonts-noto-color-emoji_2\.042-0\+deb12u1_all\.deb"):
        find_packages(tmp_path)
    write_deb(tmp_path / "x_1_all.deb", {"./usr/other": b"x"})
    file = PackageFile("x", "1", "./usr/x", "")
    with pytest.raises(ValueError, match=r"holds no \./usr/x; expected x 1"):
        read_file({"x": tmp_path / "x_1_all.deb"}, file)
    (tmp_path / "x_1_all.deb").write_bytes(b"!<arch>\n")
    with pytest.raises(ValueError, match=r"holds no data\.tar"):
        read_file({"x": tmp_path / "x_1_all.deb"}, file)
    (tmp_path / "x_1_all.deb").write_bytes(b"no package")
    with pytest.raises(ValueError, match="is no Debian package"):
        read_file({"x": tmp_path / "x_1_all.deb"}, file)


def test_a_missing_or_failing_apt_get_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "apt-get").write_text("#!/bin/sh\necho 'E: Unable to locate package' >&2\nexit 100\n")
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(RuntimeError, match=r"unicode-data=15\.0\.0-1 .* failed: E: Unable to locate package"):
        download_packages(tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match=r"apt-get is not here, .*; get the \.deb files elsewhere and pass --debs"):
        download_packages(tmp_path)
