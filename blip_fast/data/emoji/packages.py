"""The Debian packages that the emoji set is made from, and the files in them."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

_AR_MAGIC = b"!<arch>\n"


@dataclasses.dataclass(frozen=True)
class PackageFile:
    """A file in a package of a certain version; its SHA-256 tells whether it is the one that was meant."""

    package: str
    version: str
    path: str
    sha256: str


_CLDR = "./usr/share/unicode/cldr/common"
FONT = PackageFile(
    package="fonts-noto-color-emoji",
    version="2.042-0+deb12u1",
    path="./usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",
    sha256="e5899ed38b8ed83e08bd3ac5de09791e9d19d288333a796de1d35ad17396f1ec",
)
NAMES = PackageFile(
    package="unicode-data",
    version="15.0.0-1",
    path="./usr/share/unicode/emoji/emoji-test.txt",
    sha256="8445f23ac8388e096be19d0262e14fceff856ff52093f2356dc89485f1a853db",
)
KEYWORDS = (
    PackageFile(
        package="unicode-cldr-core",
        version="41-0.1",
        path=f"{_CLDR}/annotations/en.xml",
        sha256="170a989b9aff71fd06b9f7bbd70aa3b4a3d228e15fa734692d4fc80206e536e1",
    ),
    PackageFile(
        package="unicode-cldr-core",
        version="41-0.1",
        path=f"{_CLDR}/annotationsDerived/en.xml",
        sha256="0fab943b22dd1197b6d6fe6ce6aec7968e925d547283484bddcf96b14daf657f",
    ),
)
PACKAGES = {file.package: file.version for file in (FONT, NAMES, *KEYWORDS)}


def find_packages(folder: Path) -> dict[str, Path]:
    """The package files (``name_version_all.deb``) in a folder, by name.

    Raises FileNotFoundError that names what is missing.
    """
    found = {}
    for name, version in PACKAGES.items():
        matches = sorted(folder.glob(f"{name}_*.deb"))
        if not matches:
            raise FileNotFoundError(f"debs={str(folder)!r} holds no {name}_{version}_all.deb")
        found[name] = matches[0]
    return found


def download_packages(folder: Path) -> None:
    """Let apt-get fetch the packages into a folder.

    Raises RuntimeError where there is no apt-get, or it does not find them.
    """
    wanted = [f"{name}={version}" for name, version in PACKAGES.items()]
    if shutil.which("apt-get") is None:
        raise RuntimeError(
            f"apt-get is not here, which would fetch {', '.join(wanted)}; get the .deb files elsewhere and pass --debs"
        )
    done = subprocess.run(["apt-get", "download", *wanted], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise RuntimeError(f"apt-get download {' '.join(wanted)} failed: {reason}")


def read_file(packages: dict[str, Path], file: PackageFile) -> bytes:
    """The content of a file in its package.

    Raises ValueError for what is no Debian package, or one without the file, or with another version of it.
    """
    deb = packages[file.package]
    with tarfile.open(fileobj=BytesIO(_data_archive(deb))) as archive:
        try:
            member = archive.extractfile(file.path)
        except KeyError:
            member = None
        if member is None:
            raise ValueError(f"{deb} holds no {file.path}; expected {file.package} {file.version}")
        content = member.read()
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise ValueError(f"{file.path} in {deb} is not that of {file.package} {file.version}; expected this version")
    return content


def _data_archive(deb: Path) -> bytes:
    """The compressed tar file with a package's files: a member "data.tar.*" of the ar archive that a package is."""
    with deb.open("rb") as file:
        if file.read(len(_AR_MAGIC)) != _AR_MAGIC:
            raise ValueError(f"{deb} is no Debian package")
        while len(header := file.read(60)) == 60:
            name, size = header[:16].decode("ascii").strip().rstrip("/"), int(header[48:58])
            if name.startswith("data.tar"):
                return file.read(size)
            file.seek(size + size % 2, 1)
    raise ValueError(f"{deb} holds no data.tar")
