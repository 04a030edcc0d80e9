"""One unit of work: its pictures captioned, all texts scored; a record for every sample, in order."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from blip_fast.capfilt.captioning import sample_captions, sample_seed
from blip_fast.capfilt.matching import cosines, match_probabilities, pack_strings
from blip_fast.capfilt.models import CapFiltModels
from blip_fast.capfilt.samples import WebSample, read_samples, root_of
from blip_fast.capfilt.settings import ScoreSettings
from blip_fast.capfilt.tally import Record
from blip_fast.capfilt.units import Unit
from blip_fast.data.packing import PackedTexts
from blip_fast.data.pictures import BrokenSampleError
from blip_fast.data.roots import Root
from blip_fast.data.text import pre_caption
from blip_fast.data.transforms import eval_transform

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


@dataclasses.dataclass(frozen=True)
class LoadedSample:
    """A sample with its picture at each size, (3, S, S) float32, or with what is wrong with it."""

    sample: WebSample
    images: tuple[Tensor, ...] = ()
    problem: tuple[str, str] | None = None


class UnitScorer:
    """Scores units with models that stay loaded; ``root`` and ``threads`` are where and how pictures are read."""

    def __init__(
        self, models: CapFiltModels, settings: ScoreSettings, device: torch.device, root: Path | None, threads: int
    ) -> None:
        self.models, self.settings, self.device = models, settings, device
        self.root, self.threads = root, threads
        self.transforms = [eval_transform(size) for size in models.image_sizes]

    def records(self, unit: Unit) -> Iterator[Record]:
        """A record for each sample of the unit; no more than a few batches of pictures are held."""
        root = root_of(unit, self.root)
        with ThreadPoolExecutor(self.threads) as executor:
            depth = self.settings.batch_size + self.threads
            loaded = ahead(executor, lambda sample: self.load(sample, root), read_samples(unit), depth)
            for batch in batches(loaded, self.settings.batch_size):
                yield from self.score(batch)

    def load(self, sample: WebSample, root: Root) -> LoadedSample:
        """Decode a picture, unless something is wrong with the sample."""
        slim = dataclasses.replace(sample, data=None)  # a batch need not hold the encoded pictures
        if sample.problem is not None:
            return LoadedSample(slim, problem=sample.problem)
        try:
            picture = sample.picture(root)
            images = tuple(transform(picture) for transform in self.transforms)
        except BrokenSampleError as error:
            return LoadedSample(slim, problem=("broken_picture", str(error)))
        return LoadedSample(slim, images)

    def score(self, batch: list[LoadedSample]) -> list[Record]:
        """Records of a batch, in its order."""
        sound = [loaded for loaded in batch if loaded.problem is None]
        scored: Iterator[Record] = iter(())
        if sound:
            images = [
                torch.stack(images).to(self.device) for images in zip(*(one.images for one in sound), strict=True)
            ]
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.bfloat16):
                scored = iter(self.score_images([one.sample for one in sound], images))
        return [next(scored) if one.problem is None else rejection(one.sample, one.problem) for one in batch]

    @torch.no_grad()
    def score_images(self, samples: list[WebSample], images: list[Tensor]) -> list[Record]:
        """Caption images (B, 3, S, S), one tensor for each encoder, and score web and synthetic texts."""
        states, filter_states = self.models.encode(images)
        seeds = [sample_seed(self.settings.seed, sample.key) for sample in samples]
        captions = sample_captions(self.models.captioner, states, seeds, self.settings)
        records = [
            {
                "key": sample.key,
                "number": sample.number,
                "image": sample.image,
                "suffix": sample.suffix,
                "seed": seed,
                "web": self.web_text(sample.text),
                "synthetic": synthetic_texts(texts),
            }
            for sample, seed, texts in zip(samples, seeds, captions, strict=True)
        ]
        self.add_scores(records, filter_states)
        return records

    def web_text(self, text: str) -> Record:
        """The web text of a sample before it is scored."""
        words = len(clean(text, len(text) + 1).split(" "))
        return candidate(text) | ({"long": True} if words > self.settings.max_words else {})

    def add_scores(self, records: list[Record], states: Tensor) -> None:
        """Write cosine and matching probability into all texts of images, states (B, L, vit_width)."""
        texts = self.undropped(records)
        if not texts:
            return
        scores = cosines(self.models.filter, states, *self.packed(texts))
        for (_, text), cosine in zip(texts, scores.tolist(), strict=True):
            text["cosine"] = significant(cosine)
            if self.settings.itc_threshold is not None and cosine < self.settings.itc_threshold:
                text["dropped"] = "below_itc"
        texts = self.undropped(records)
        if not texts:
            return
        packed, image_of_text = self.packed(texts)
        seen, image_of_text = image_of_text.unique(return_inverse=True)  # others need no keys and values
        scores = match_probabilities(self.models.filter, states.index_select(0, seen), packed, image_of_text)
        for (_, text), probability in zip(texts, scores.tolist(), strict=True):
            text["itm"] = significant(probability)

    def undropped(self, records: list[Record]) -> list[tuple[int, Record]]:
        """(image, text) of all texts that are still to be judged."""
        candidates = [
            (image, text) for image, record in enumerate(records) for text in (record["web"], *record["synthetic"])
        ]
        return [(image, text) for image, text in candidates if "dropped" not in text]

    def packed(self, texts: list[tuple[int, Record]]) -> tuple[PackedTexts, Tensor]:
        """Texts as the filter reads them, and the image of each."""
        strings = [clean(text["text"], self.settings.max_words) for _, text in texts]
        image_of_text = torch.tensor([image for image, _ in texts], device=self.device)
        return pack_strings(self.models.filter, strings), image_of_text


def ahead(
    executor: ThreadPoolExecutor, load: Callable[[Item], Loaded], items: Iterable[Item], depth: int
) -> Iterator[Loaded]:
    """``load`` of each item, in order, with up to ``depth`` of them in the making."""
    pending: deque[Future[Loaded]] = deque()
    for item in items:
        pending.append(executor.submit(load, item))
        if len(pending) > depth:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def batches(loaded: Iterable[LoadedSample], size: int) -> Iterator[list[LoadedSample]]:
    """Consecutive samples with ``size`` sound ones among them each; the last batch may have fewer."""
    batch: list[LoadedSample] = []
    sound = 0
    for one in loaded:
        batch.append(one)
        sound += one.problem is None
        if sound == size or len(batch) >= 8 * size:
            yield batch
            batch, sound = [], 0
    if batch:
        yield batch


def unicode_text(text: str) -> str:
    """A text in which what is no Unicode (half a surrogate pair) has become a question mark."""
    return text.encode(errors="replace").decode()


def clean(text: str, max_words: int) -> str:
    """A text as training reads it."""
    return pre_caption(unicode_text(text), max_words)


def is_empty(text: str) -> bool:
    """Whether training would read nothing but white space."""
    return not clean(text, 1).strip()


def candidate(text: str) -> Record:
    """A text before it is scored."""
    return {"text": text, "dropped": "empty"} if is_empty(text) else {"text": text}


def synthetic_texts(texts: list[str]) -> list[Record]:
    """The captions drawn for one picture; a text drawn again counts once."""
    records = [candidate(text) for text in texts]
    for number, record in enumerate(records):
        if "dropped" not in record and record["text"] in texts[:number]:
            record["dropped"] = "repeated"
    return records


def rejection(sample: WebSample, problem: tuple[str, str]) -> Record:
    """The record of a sample that is left out."""
    reason, detail = problem
    web = {"text": sample.text}
    return dict(key=sample.key, number=sample.number, image=sample.image, web=web, rejected=reason, detail=detail)


def significant(value: float) -> float:
    """Nine significant digits: as many as tell all float32 values apart. FloatingPointError for what is no number."""
    if not math.isfinite(value):
        raise FloatingPointError(f"the filter gives a score of {value}; expected a number (are its weights sound?)")
    return float(f"{value:.9g}")
