"""Captions of images and their references."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from blip_fast.models import BlipCaptioner
from blip_fast.tasks.evaluation.captions import caption_images, captions_by_image, read_references
from tests.tasks.evaluation.common import smallest_config


def test_entries_are_those_of_the_model() -> None:
    torch.manual_seed(0)
    model = BlipCaptioner(smallest_config()).eval()
    images = torch.randn(3, 3, 16, 16)
    options = dict(prompt="a picture of ", num_beams=2, max_length=8, min_length=5)
    batches = [SimpleNamespace(images=images[:2], image_ids=(9, 4)), SimpleNamespace(images=images[2:], image_ids=(7,))]
    entries = caption_images(model, batches, **options)
    assert [entry["image_id"] for entry in entries] == [9, 4, 7]
    assert [entry["caption"] for entry in entries] == model.generate(images, **options)
    assert captions_by_image(entries)[7] == entries[2]["caption"]


def test_references(tmp_path: Path) -> None:
    annotations = [{"image_id": 3, "id": n, "caption": text} for n, text in enumerate(("a cat", "the cat"))]
    file = tmp_path / "coco_karpathy_val_gt.json"
    file.write_text(json.dumps({"annotations": annotations, "images": [{"id": 3}]}))
    assert read_references(file) == {3: ["a cat", "the cat"]}
    for content in ("[]", "{}", "no json", '{"annotations": [{"image_id": 1}]}'):
        file.write_text(content)
        with pytest.raises(ValueError, match=r"val_gt\.json is not of COCO's format"):
            read_references(file)
