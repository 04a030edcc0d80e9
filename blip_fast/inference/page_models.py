"""The models behind the page, each as far as a checkpoint serves it, and what a visitor asks of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from blip_fast.checkpoints.pretrained import PretrainedModel
from blip_fast.inference.answers import answers
from blip_fast.inference.captions import Captioning, CaptionSettings
from blip_fast.inference.checkpoint import Precision, choose_checkpoint, load_model
from blip_fast.inference.heat_map import overlay, text_heat
from blip_fast.inference.inputs import Input
from blip_fast.inference.matching import matches
from blip_fast.inference.pictures import PictureDataset, normalised, read_picture
from blip_fast.models import BlipCaptioner, BlipITM, BlipVQA


@dataclass(frozen=True)
class PageModel:
    """A model of the page, or why there is none; ``note`` is what a visitor should know about it."""

    model: Any = None
    source: str = ""
    missing: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class Match:
    """How well a text matches a picture, and where it looks: the picture under the heat of the text and of each word."""

    itm: float
    cosine: float
    whole: Image.Image
    words: list[tuple[Image.Image, str]]


class PageModels:
    """Captions, answers and matches for pictures in files. Pictures raise BrokenSampleError, settings ValueError."""

    def __init__(self, captioner: PageModel, vqa: PageModel, itm: PageModel) -> None:
        self.captioner, self.vqa, self.itm = captioner, vqa, itm

    @classmethod
    def open(cls, checkpoints: Sequence[str], device: torch.device, precision: Precision = "fp32") -> PageModels:
        """For each task the first of the checkpoints that serves it; without any the usual ones of each task."""
        return cls(
            *(
                open_model(model_class, checkpoints, device, precision)
                for model_class in (BlipCaptioner, BlipVQA, BlipITM)
            )
        )

    def caption(self, path: str, prompt: str | None, sample: bool, seed: int = 0) -> tuple[str, float]:
        """A caption and the mean log-probability of its tokens; ``prompt`` None is the usual one."""
        model = self.captioner.model
        settings = CaptionSettings(prompt=prompt, sample=sample, scores=True, seed=seed)
        (record,) = Captioning(model, settings).records([path], pixels_of(model, read_picture(Input(path, path)))[None])
        return record["caption"], record["score"]

    def answer(self, path: str, question: str) -> tuple[str, float]:
        """An answer and the mean log-probability of its tokens."""
        model = self.vqa.model
        image = normalised(pixels_of(model, read_picture(Input(path, path))), model.visual_encoder.cls_token)
        (record,) = answers(model, image, [question])
        return record["answer"], record["score"]

    def match(self, path: str, text: str) -> Match:
        """Scores and heat maps of a text."""
        model, picture = self.itm.model, read_picture(Input(path, path))
        (record,) = matches(model, normalised(pixels_of(model, picture), model.visual_encoder.cls_token), [text])
        heat = text_heat(model, picture, text)
        words = [(overlay(picture, word_heat), word) for word, word_heat in heat.words]
        return Match(record["itm"], record["cosine"], overlay(picture, heat.whole), words)


def pixels_of(model: PretrainedModel, picture: Image.Image) -> torch.Tensor:
    """Pixels (3, S, S) uint8 of the size that a model takes."""
    return PictureDataset(model.config.image_size).transform(picture)


def open_model(
    model_class: type[PretrainedModel], checkpoints: Sequence[str], device: torch.device, precision: Precision
) -> PageModel:
    """A model of this class from the first checkpoint that has one."""
    chosen: list[tuple[str, str | None]] = [(name, None) for name in checkpoints]
    reasons = []
    try:
        chosen = chosen or [choose_checkpoint(model_class.head, None)]
    except FileNotFoundError as error:
        return PageModel(missing=str(error))
    for source, note in chosen:
        try:
            return PageModel(load_model(model_class, source, device, precision), source, note=note)
        except ValueError as error:
            reasons.append(str(error))
    return PageModel(missing="; ".join(reasons))
