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


@pytest.mark.parametrize("count", [1, 2, 4])
def test_texts_and_images_are_pairs(count: int) -> None:
    message = f"image has 3 images for {count} texts; expected as many"
    with pytest.raises(ValueError, match=message):
        pair(models.BlipCaptioner, models.BlipCaptioner)[0](IMAGES, *texts(count, 6))
    with pytest.raises(ValueError, match=message):
        pair(models.BlipNLVR, models.BlipNLVR)[0](torch.stack([IMAGES, IMAGES], dim=1), *texts(count, 6))
    vqa = pair(models.BlipVQA, models.BlipVQA)[0]
    with pytest.raises(ValueError, match=message):
        vqa(IMAGES, *texts(count, 6), *texts(3, 5, generator=1), [1, 1, 1], torch.ones(3))


def test_answers_have_weights_of_their_own() -> None:
    vqa = pair(models.BlipVQA, models.BlipVQA)[0].eval()
    for weights in (torch.ones(3, 1), torch.ones(1)):
        with pytest.raises(ValueError, match=r"weights has shape .*; expected \(3,\), one per answer"):
            vqa(IMAGES, *texts(3, 6), *texts(3, 5, generator=1), [1, 1, 1], weights)
    with pytest.raises(ValueError, match="k=0; expected at least 1"):
        vqa.rank_ids(IMAGES, *texts(3, 6), *texts(4, 5, generator=1), k=0)


def test_ids_of_32_bits() -> None:
    captioner = pair(models.BlipCaptioner, models.BlipCaptioner)[0].eval()
    ids, mask = texts(3, 6)
    assert torch.equal(captioner(IMAGES, ids.int(), mask).loss, captioner(IMAGES, ids, mask).loss)
