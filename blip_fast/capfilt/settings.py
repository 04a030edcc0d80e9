"""What a CapFilt run is asked for."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from blip_fast.data.tokens import PROMPT

DEFAULT_THRESHOLD = 0.5  # the filter's own verdict: "match" is likelier than "no match"


class ScoreSettings(BaseModel):
    """What captions and scores depend on; a run goes on only with the same. The defaults are the paper's (section 4.1).

    Attributes:
        num_captions: synthetic captions drawn per picture.
        prompt: what every caption starts with in the captioner's training.
        top_p, top_k: nucleus that tokens are drawn from.
        min_length, max_length: of a caption in tokens, prompt included.
        max_words: words of a text that count, as in training.
        itc_threshold: a text whose cosine with the picture is lower is dropped without a look by the ITM head; None: no
            such first stage.
        seed: with a sample's key, where its random numbers come from.
        batch_size: pictures per batch.
        unit_size: entries of a list per unit of work.
        bfloat16: compute in bfloat16 where it is safe (autocast).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_captions: int = Field(default=1, ge=1)
    prompt: str = PROMPT
    top_p: float = Field(default=0.9, gt=0, le=1)
    top_k: int = Field(default=50, ge=0)
    min_length: int = Field(default=5, ge=0)
    max_length: int = Field(default=20, ge=2)
    max_words: int = Field(default=30, ge=1)
    itc_threshold: float | None = Field(default=None, ge=-1, le=1)
    seed: int = Field(default=42, ge=0)
    batch_size: int = Field(default=32, ge=1)
    unit_size: int = Field(default=1000, ge=1)
    bfloat16: bool = False

    @model_validator(mode="after")
    def _lengths_in_order(self) -> ScoreSettings:
        if self.min_length > self.max_length:
            raise ValueError(f"min_length={self.min_length}; expected a number from 0 to max_length={self.max_length}")
        return self


class SelectSettings(BaseModel):
    """Which texts are kept, and in which form; may be changed afterwards without scoring again.

    Attributes:
        threshold: probability of a match from which on a text is kept; the default is 0.5.
        keep_fraction: in place of a threshold: this share of all texts, the best ones; equal scores stay together.
        form: "list" is one JSON list of {image, caption} with full paths; "shards" are webdataset shards that hold the
            pictures too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: float | None = Field(default=None, ge=0, le=1)
    keep_fraction: float | None = Field(default=None, gt=0, le=1)
    form: Literal["list", "shards"] = "list"

    @model_validator(mode="after")
    def _one_rule(self) -> SelectSettings:
        if self.threshold is not None and self.keep_fraction is not None:
            raise ValueError(f"threshold={self.threshold} and keep_fraction={self.keep_fraction}; expected one of them")
        return self


class CapFiltSettings(BaseModel):
    """One run: web pictures with texts in, a bootstrapped set out.

    Attributes:
        images: JSON lists of {image, caption} and webdataset shards; see :func:`~blip_fast.capfilt.units.list_units`.
        captioner, filter: checkpoints, as ``from_pretrained`` takes them.
        output: folder for everything that is written.
        image_root: where the pictures of lists lie and must lie; None: beside each list.
        human: JSON lists of clean pairs that go into the set as they are; ``human_root`` as ``image_root``.
        workers: threads that read and decode pictures.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: tuple[str, ...] = Field(min_length=1)
    captioner: str
    filter: str
    output: Path
    image_root: Path | None = None
    human: tuple[str, ...] = ()
    human_root: Path | None = None
    device: str = "cpu"
    workers: int = Field(default=2, ge=1)
    score: ScoreSettings = ScoreSettings()
    select: SelectSettings = SelectSettings()


def fingerprint(*parts: Any) -> str:
    """16 hexadecimal digits that stand for plain values."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
