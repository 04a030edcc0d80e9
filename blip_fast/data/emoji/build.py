"""Builds the emoji set: pictures, captions in three splits, and noisy texts for training."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from blip_fast.data.demo_pairs import demo_root
from blip_fast.data.emoji.drawing import EmojiFont
from blip_fast.data.emoji.names import Emoji, read_keywords, read_names
from blip_fast.data.emoji.packages import FONT, KEYWORDS, NAMES, download_packages, find_packages, read_file
from blip_fast.data.emoji.splits import SEED, SPLITS, assign_splits, web_texts

LICENSE = "LICENSE-UNICODE.txt"


def build_emoji(
    output: Path, debs: Path | None = None, progress: Callable[[list[Emoji]], Iterable[Emoji]] = iter
) -> dict[str, int]:
    """Write the set to the new folder ``output`` and return how many pairs each split has; two runs give equal files.

    ``train.json``, ``val.json``, ``test.json``: lists of ``{"image", "caption", "image_id"}``. ``train_web.json``: the
    pictures of training with web texts, and whether they ``match``, which training must never see. ``images/``: 136 x 136.

    Args:
        debs: folder of the Debian packages; None lets apt-get fetch them.
        progress: goes over the emoji that are drawn.

    Raises:
        FileExistsError: ``output`` exists.
        FileNotFoundError, RuntimeError, ValueError: a package or tool is missing, or of another version.
    """
    if output.exists():
        raise FileExistsError(f"output={str(output)!r} exists; expected a new folder")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as name:
        work = Path(name)
        font, names, keywords = read_sources(work, debs)
        folder = work / "set"
        (folder / "images").mkdir(parents=True)
        wanted = [emoji for emoji in read_names(names) if emoji.is_picture_of_something]
        drawn = draw_all(progress(wanted), EmojiFont(font), folder / "images")
        counts = write_lists(folder, drawn, keywords)
        shutil.copyfile(demo_root() / LICENSE, folder / LICENSE)
        os.rename(folder, output)
    return counts


def read_sources(work: Path, debs: Path | None) -> tuple[bytes, str, dict[str, str]]:
    """The font, ``emoji-test.txt`` and the keywords, from packages in ``debs`` or fetched into ``work``."""
    if debs is None:
        debs = work / "debs"
        debs.mkdir()
        download_packages(debs)
    packages = find_packages(debs)
    keywords = read_keywords(read_file(packages, file) for file in KEYWORDS)
    return read_file(packages, FONT), read_file(packages, NAMES).decode("utf-8"), keywords


def draw_all(emoji: Iterable[Emoji], font: EmojiFont, folder: Path) -> list[Emoji]:
    """Draw emoji to files and return those that got one: not what the font lacks, and no picture twice."""
    drawn, seen = [], set()
    for one in emoji:
        picture = font.draw(one.text)
        if picture is None or (digest := _digest(picture)) in seen:
            continue
        seen.add(digest)
        picture.save(folder / f"{one.id}.png", optimize=True)
        drawn.append(one)
    return drawn


def write_lists(folder: Path, emoji: list[Emoji], keywords: dict[str, str]) -> dict[str, int]:
    """Write the annotation files; returns the number of pairs in each split."""
    draw = random.Random(SEED)
    splits = assign_splits(emoji, draw)
    parts = {name: [one for one, split in zip(emoji, splits, strict=True) if split == name] for name in SPLITS}
    for name, part in parts.items():
        _write(folder / f"{name}.json", [_pair(one) | {"image_id": one.id} for one in part])
    texts = web_texts(parts["train"], keywords, draw)
    web = [
        _pair(one) | {"caption": text, "match": match} for one, (text, match) in zip(parts["train"], texts, strict=True)
    ]
    _write(folder / "train_web.json", web)
    return {name: len(part) for name, part in parts.items()}


def _pair(emoji: Emoji) -> dict[str, Any]:
    return {"image": f"images/{emoji.id}.png", "caption": emoji.caption}


def _write(path: Path, entries: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(entries, ensure_ascii=False, indent=0), encoding="utf-8")


def _digest(picture: Image.Image) -> bytes:
    return hashlib.sha256(picture.tobytes()).digest()
