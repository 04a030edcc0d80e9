"""Debian packages in miniature, with letters in place of emoji."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import lzma
import tarfile
from pathlib import Path

import matplotlib

from blip_fast.data.emoji.packages import FONT, KEYWORDS, NAMES, PackageFile

LETTERS = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
_WIDE = ("0416", "0429", "042E", "0428", "0040")  # letters about as wide as an emoji
_LINES = [
    "# group: People & Body",
    "# subgroup: person",
    "0057 ; fully-qualified # W E1.0 woman",
    *(f"{code} ; fully-qualified # x E1.0 woman: {tone} skin tone" for code, tone in zip(_WIDE, TONES, strict=True)),
    "0049 ; fully-qualified # I E1.0 too narrow",
    "2003 ; fully-qualified # E1.0 blank",
    "0058 ; minimally-qualified # X E1.0 not asked for",
    "# group: Objects",
    "# subgroup: light",
    "006D ; fully-qualified # m E1.0 light\u2019s tone",
    "0057 FE0F ; fully-qualified # W E1.0 the same picture",
    "# group: Flags",
    "# subgroup: flag",
    "00BD ; fully-qualified # 1/2 E1.0 flag: N",
    "# group: Symbols",
    "# subgroup: zodiac",
    "00BE ; fully-qualified # 3/4 E1.0 Leo",
    "# subgroup: arrow",
    "0152 ; fully-qualified # OE E1.0 arrow: dark, light, medium, medium-light, medium-dark, skin",
]  # fmt: skip
EMOJI_TEST = "\n".join(_LINES)
_XML = (
    '<?xml version="1.0"?><ldml><annotations><annotation cp="{}">{}</annotation>'
    '<annotation cp="W" type="tts">no</annotation></annotations></ldml>'
)
CONTENTS = {
    FONT: LETTERS.read_bytes(),
    NAMES: EMOJI_TEST.encode(),
    KEYWORDS[0]: _XML.format("W", "adult | lady").encode(),
    KEYWORDS[1]: _XML.format("\u0416", "pale | lady").encode(),
}


def with_digest(file: PackageFile) -> PackageFile:
    """The file, with the digest of its miniature."""
    return dataclasses.replace(file, sha256=hashlib.sha256(CONTENTS[file]).hexdigest())


def write_debs(folder: Path) -> Path:
    """Write the three packages to ``folder``."""
    folder.mkdir()
    for package in {file.package for file in CONTENTS}:
        files = {file.path: content for file, content in CONTENTS.items() if file.package == package}
        write_deb(folder / f"{package}_1_all.deb", files)
    return folder


def write_deb(path: Path, files: dict[str, bytes]) -> None:
    """Write a package: an ar archive of three members, the last with the files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": b"odd",
        "data.tar.xz": lzma.compress(buffer.getvalue(), preset=0),
    }
    data = b"!<arch>\n"
    for name, content in members.items():
        data += (
            f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
            + content
            + b"\n" * (len(content) % 2)
        )
    path.write_bytes(data)
