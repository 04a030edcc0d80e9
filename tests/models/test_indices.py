"""Indices of images and texts that do not exist are refused, not taken for texts that see nothing."""

from __future__ import annotations

import pytest
import torch

from blip_fast import models
from tests.models.common import pair, texts

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("wrong", [3, -1])
@pytest.mark.parametrize(("place", "name"), [(0, "image_for_text"), (1, "text_for_image")])
def test_negatives(place: int, name: str, wrong: int) -> None:
    ids, mask = texts(3, 6)
    negatives = [torch.tensor([1, 2, 0]), torch.tensor([2, 0, 1])]
    negatives[place][1] = wrong
    message = rf"{name} is \[\d, {wrong}, \d\]; expected numbers from 0 to 2"
    with pytest.raises(ValueError, match=message):
        pair(models.BlipPretrain, models.BlipPretrain)[0](IMAGES, ids, mask, negatives=tuple(negatives))
    with pytest.raises(ValueError, match=message):
        pair(models.BlipRetrieval, models.BlipRetrieval)[0](
            IMAGES, ids, mask, ids=torch.arange(3), alpha=0.4, negatives=tuple(negatives)
        )


def test_images_of_texts() -> None:
    model = pair(models.BlipITM, models.BlipITM)[0].eval()
    with pytest.raises(ValueError, match=r"image_of_text is \[0, 5, 2\]; expected numbers from 0 to 2"):
        model.itm(IMAGES, *texts(3, 6), image_of_text=torch.tensor([0, 5, 2]))
