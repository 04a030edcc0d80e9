"""The baseline that copies the caption of the nearest training picture."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from blip_fast.data.pretrain import PretrainData
from blip_fast.data.transforms import eval_transform
from blip_fast.tasks.evaluation.nearest import nearest_caption_scores

COLOURS = {
    "a red square on paper": (250, 0, 0),
    "a green circle in grass": (0, 250, 0),
    "the blue sky above": (0, 0, 250),
}


def pairs(folder: Path, shade: int, captions: list[str]) -> PretrainData:
    folder.mkdir()
    entries = []
    for number, (colour, caption) in enumerate(zip(COLOURS.values(), captions, strict=True)):
        Image.new("RGB", (16, 16), tuple(abs(part - shade) for part in colour)).save(folder / f"{number}.png")
        entries.append({"image": f"{number}.png", "caption": caption})
    (folder / "pairs.json").write_text(json.dumps(entries))
    return PretrainData([folder / "pairs.json"], folder, eval_transform(16))


def test_a_like_picture_gives_its_caption(tmp_path: Path) -> None:
    captions = list(COLOURS)
    known = pairs(tmp_path / "known", 0, captions)
    assert nearest_caption_scores(known, pairs(tmp_path / "same", 30, captions))["exact"] == 100
    others = pairs(tmp_path / "others", 30, [*captions[1:], captions[0]])
    assert nearest_caption_scores(known, others)["exact"] == 0
