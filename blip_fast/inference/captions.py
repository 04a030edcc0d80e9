"""Captions of pictures, batch after batch, as records."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from blip_fast.data.tokens import PROMPT, strings_of
from blip_fast.generation import Generated
from blip_fast.generation.decode import check_num_beams
from blip_fast.inference.memory import in_parts
from blip_fast.inference.pictures import normalised
from blip_fast.models import BlipCaptioner

# The published limits, 20 and 5 tokens with a prompt of 4 ([DEC] counts), for prompts of any length.
_NEW_TOKENS = 16


@dataclass(frozen=True)
class CaptionSettings:
    """How captions are made.

    Attributes:
        prompt: what they begin with; None is the published "a picture of ", or nothing where the model's vocabulary has
            no such words.
        beams: width of the beam search; 1 is greedy search.
        sample: draw from the nucleus of probability ``top_p`` instead.
        max_length, min_length: limits in tokens, [DEC] and the prompt included; None is 16 more than these have, and 1.
        scores: records carry log-probabilities.
        seed: of the draws; those of a picture follow from it and the picture's name, whatever batch it is in.
    """

    prompt: str | None = None
    beams: int = 3
    sample: bool = False
    top_p: float = 0.9
    max_length: int | None = None
    min_length: int | None = None
    scores: bool = False
    seed: int = 0


class Captioning:
    """A captioner with settings that have been made to fit it. Raises ValueError for settings that it cannot follow."""

    def __init__(self, model: BlipCaptioner, settings: CaptionSettings) -> None:
        self.model, self.settings = model, settings
        self.prompt = default_prompt(model) if settings.prompt is None else settings.prompt
        start = len(model.tokenizer(strings_of([self.prompt])).input_ids[0]) - 1
        longest = model.config.max_position_embeddings
        self.max_length = min(start + _NEW_TOKENS, longest) if settings.max_length is None else settings.max_length
        self.min_length = min(start + 1, self.max_length) if settings.min_length is None else settings.min_length
        if not start < self.max_length <= longest:
            raise ValueError(f"max_length={self.max_length}; expected more than the {start} tokens that the prompt and "
                             f"[DEC] have, and at most the model's {longest}")  # fmt: skip
        if not 0 <= self.min_length <= self.max_length:
            raise ValueError(f"min_length={self.min_length}; expected a number from 0 to max_length={self.max_length}")
        check_num_beams(self.copies, model.config)

    @property
    def copies(self) -> int:
        """Texts that are decoded at a time for each picture."""
        return 1 if self.settings.sample else self.settings.beams

    def records(self, names: list[str], pixels: Tensor) -> list[dict[str, Any]]:
        """A record for each of B pictures, (B, 3, S, S) uint8; in parts where they do not fit into memory."""
        return in_parts(lambda rows: list(self._records(names[rows], pixels[rows])), 0, len(names)) if names else []

    def _records(self, names: list[str], pixels: Tensor) -> Iterator[dict[str, Any]]:
        options: dict[str, Any] = {}
        if self.settings.sample:
            seeds = [seed_of(self.settings.seed, name) for name in names]
            options = dict(do_sample=True, top_p=self.settings.top_p, seed=seeds)
        captions = self.model.generate(
            normalised(pixels, self.model.visual_encoder.cls_token),
            self.prompt,
            self.settings.beams,
            self.max_length,
            self.min_length,
            return_scores=True,
            **options,
        )
        for name, caption in zip(names, captions, strict=True):
            assert isinstance(caption, Generated)
            yield {"image": name, "caption": caption.text} | (self.scores(caption) if self.settings.scores else {})

    def scores(self, caption: Generated) -> dict[str, Any]:
        """Mean log-probability of a caption's tokens, the tokens, and the log-probability of each."""
        tokens = self.model.tokenizer.convert_ids_to_tokens(caption.token_ids)
        logprobs = [round(value, 5) for value in caption.token_logprobs]
        return {"score": round(caption.score, 5), "tokens": tokens, "token_logprobs": logprobs}


def default_prompt(model: BlipCaptioner) -> str:
    """The published prompt, if the model's vocabulary has its words; otherwise none."""
    pieces = model.tokenizer.tokenize(PROMPT)
    known = not any(piece.startswith("##") or piece == model.tokenizer.unk_token for piece in pieces)
    return PROMPT if known else ""


def seed_of(seed: int, name: str) -> int:
    """The seed of a picture: 62 bits that follow from the run's seed and the picture's name."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2
