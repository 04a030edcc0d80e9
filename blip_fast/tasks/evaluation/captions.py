"""Captions of images by beam search, and their scores."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from blip_fast.models.captioner import BlipCaptioner
from blip_fast.tasks.evaluation.results import Entry


class ImageBatch(Protocol):
    """Images (B, 3, S, S) on the model's device, and their ids."""

    @property
    def images(self) -> Tensor: ...

    @property
    def image_ids(self) -> Sequence[int | str]: ...


@torch.no_grad()
def caption_images(model: BlipCaptioner, batches: Iterable[ImageBatch], **options: Any) -> list[Entry]:
    """Entries ``{"image_id": id, "caption": str}`` of a result file, in the order of the batches.

    ``options`` are those of ``BlipCaptioner.generate``: prompt, num_beams, max_length, min_length, repetition_penalty.
    """
    entries: list[Entry] = []
    for batch in batches:
        captions = model.generate(batch.images, **options)
        entries += [{"image_id": image, "caption": text} for image, text in zip(batch.image_ids, captions, strict=True)]
    return entries


def captions_by_image(entries: Iterable[Entry]) -> dict[int | str, str]:
    """The captions of a result file by image id."""
    return {entry["image_id"]: entry["caption"] for entry in entries}


def read_references(file: str | os.PathLike[str]) -> dict[int | str, list[str]]:
    """True captions by image id from an annotation file of COCO's format, ``coco_karpathy_{val,test}_gt.json``.

    Raises ValueError where it is of another format.
    """
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        annotations = [(entry["image_id"], str(entry["caption"])) for entry in content["annotations"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"annotation file {file} is not of COCO's format ({error!r}); expected an object with "
                         "'annotations', a list of objects with 'image_id' and 'caption'") from error  # fmt: skip
    references: dict[int | str, list[str]] = {}
    for image, caption in annotations:
        references.setdefault(image, []).append(caption)
    return references
