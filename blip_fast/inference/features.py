"""Features of pictures, of texts, and of texts that look at pictures, batch after batch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from blip_fast.data.tokens import tokenize
from blip_fast.inference.inputs import Inputs, inputs_named, refusal
from blip_fast.inference.memory import batch_size_for, in_parts
from blip_fast.inference.pictures import normalised, picture_batches
from blip_fast.inference.run import remaining
from blip_fast.models import BlipFeatureExtractor

_TEXTS_PER_BATCH = 64


@dataclass(frozen=True)
class FeatureRows:
    """Features (n, ...) of n things on the CPU.

    Attributes:
        ids: what each row belongs to: a picture's name, or a text.
        features: 0 behind the end of a text.
        lengths: (n,) tokens of each text, where there are features of each token.
        problems: name and problem of pictures that could not be read.
    """

    ids: list[str]
    features: Tensor
    lengths: Tensor | None = None
    problems: list[tuple[str, str]] = field(default_factory=list)


class Extraction:
    """An extractor in eval mode, and how it is used.

    Args:
        projected: one vector of length 1 in the space that images and texts share, in place of the states of all tokens.
        batch_size: pictures at a time; what fits into memory if None.
        workers: processes that decode pictures.

    Raises ValueError for ``projected`` where the model has no projections.
    """

    def __init__(
        self, model: BlipFeatureExtractor, projected: bool = False, batch_size: int | None = None, workers: int = 0
    ) -> None:
        if projected:
            model.check_projections()
        self.model, self.projected, self.workers = model, projected, workers
        self.weight = model.visual_encoder.cls_token
        self.device = self.weight.device
        self.batch_size = batch_size or batch_size_for(model.config, self.device, self.weight.dtype)

    @torch.inference_mode()
    def images(self, inputs: Inputs) -> Iterator[FeatureRows]:
        """Pictures, each once: (n, E) if projected, else (n, 1 + patches, vit_width)."""
        size = self.model.config.image_size
        for batch in picture_batches(remaining(inputs, ()), size, self.batch_size, self.workers):

            def work(rows: slice, pixels: Tensor = batch.pixels) -> list[Tensor]:
                images = normalised(pixels[rows], self.weight)
                return list(self.model.image_features(images, self.projected).cpu())

            if batch.names:
                features = torch.stack(in_parts(work, 0, len(batch.names)))
                yield FeatureRows(batch.names, features, problems=batch.problems)
            else:
                yield FeatureRows([], torch.empty(0), problems=batch.problems)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Iterator[FeatureRows]:
        """Texts: (n, E) if projected, else (n, N, text_width), N the most tokens that any of them has."""
        ids, mask = self._tokens(texts)
        for start in range(0, len(texts), _TEXTS_PER_BATCH):
            rows = slice(start, start + _TEXTS_PER_BATCH)
            features = self.model.text_features(ids[rows].to(self.device), mask[rows], self.projected).cpu()
            if self.projected:
                yield FeatureRows(list(texts[rows]), features)
            else:
                yield FeatureRows(list(texts[rows]), features * mask[rows, :, None], mask[rows].sum(1))

    @torch.inference_mode()
    def pairs(self, pairs: Sequence[tuple[str, str]], allow_remote: bool = False) -> Iterator[FeatureRows]:
        """Pictures, named as in records, and a text each that looks at it: (n, N, text_width) as :meth:`texts`.

        Addresses are fetched if that is allowed.
        """
        if self.projected:
            raise ValueError("projected features are of images or of texts; those of both together have no projection")
        ids, mask = self._tokens([text for _, text in pairs])
        # One picture may have several texts: a batch tells its pairs by their numbers.
        inputs = [
            replace(item, name=str(number), problem=None if allow_remote else refusal(item.place))
            for number, item in enumerate(inputs_named([name for name, _ in pairs]))
        ]
        for batch in picture_batches(inputs, self.model.config.image_size, self.batch_size, self.workers):
            numbers = torch.tensor([int(name) for name in batch.names], dtype=torch.int64)
            texts, masks = ids[numbers].to(self.device), mask[numbers]

            def work(
                rows: slice, pixels: Tensor = batch.pixels, texts: Tensor = texts, masks: Tensor = masks
            ) -> list[Tensor]:
                images = normalised(pixels[rows], self.weight)
                features = self.model.multimodal_features(images, texts[rows], masks[rows])
                return list(features.cpu() * masks[rows, :, None])

            problems = [(pairs[int(name)][0], problem) for name, problem in batch.problems]
            names = [pairs[number][0] for number in numbers.tolist()]
            features = torch.stack(in_parts(work, 0, len(names))) if names else torch.empty(0)
            yield FeatureRows(names, features, masks.sum(1), problems)

    def _tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask of all texts, padded to one length."""
        ids, mask = tokenize(texts, "features", self.model.tokenizer)
        longest = self.model.config.max_position_embeddings
        if ids.shape[1] > longest:
            worst = int(mask.sum(1).argmax())
            raise ValueError(f"text {worst + 1} has {ids.shape[1]} tokens; the model takes {longest} at most")
        return ids, mask


def read_pairs(files: Iterable[Path]) -> list[tuple[str, str]]:
    """Picture and caption of records {"image", "caption"}: JSON lines, or a published annotation file (a JSON list).

    Raises ValueError where a file holds anything else, FileNotFoundError where there is none.
    """
    pairs = []
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
            records = (
                json.loads(text) if text.lstrip().startswith("[") else [json.loads(t) for t in text.split("\n") if t]
            )
        except ValueError as error:
            raise ValueError(f"{file} holds neither JSON lines nor a JSON list: {error}") from error
        for number, record in enumerate(records, start=1):
            values = [record.get(name) for name in ("image", "caption")] if isinstance(record, dict) else [None]
            if not all(isinstance(value, str) for value in values):
                raise ValueError(f"record {number} of {file} has no 'image' and 'caption'")
            pairs.append((str(values[0]), str(values[1])))
    if not pairs:
        raise ValueError("there are no pairs; expected files of records with 'image' and 'caption'")
    return pairs
