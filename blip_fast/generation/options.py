"""What a caller can ask of a decoder, with the published defaults, and its checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from blip_fast.reference.generation import SAMPLING_REPETITION_PENALTY, LengthNorm


class OptionArguments(TypedDict, total=False):
    """Keyword arguments that every ``generate`` takes beside beams and lengths; :class:`Options` describes them."""

    do_sample: bool
    top_p: float
    top_k: int
    temperature: float
    repetition_penalty: float | None
    num_return_sequences: int
    length_norm: LengthNorm
    seed: int | Sequence[int] | None


@dataclass(frozen=True)
class Options:
    """How texts are generated.

    Attributes:
        num_beams: beam width; 1 is greedy search. Sampling does not look at it, as published.
        max_length, min_length: limits of a whole text in tokens, [DEC] and the prompt included, as published.
        do_sample: draw each token (arXiv 1904.09751) from the ``top_k`` best (0: from all), and of these from the fewest
            whose probabilities reach ``top_p`` together; logits are divided by ``temperature`` before.
        repetition_penalty: divides positive and multiplies negative scores of tokens that the text holds already, prompt
            included (arXiv 1909.05858); None is 1.1 when sampling and 1 (no penalty) otherwise, as published.
        num_return_sequences: texts per image: draws when sampling, the best hypotheses of a beam search.
        length_norm: how beam search compares texts: "published" divides the log-probability by all tokens before the end
            token, prompt included; "generated" (current transformers) by the generated ones, the end token counted.
        seed: of the draws. Image b of a batch draws from ``seed + b``; a list names the seed of each image. An image's
            texts depend on its seed alone, not on the batch that it is in. None takes seeds from torch's generator.
    """

    num_beams: int = 3
    max_length: int = 20
    min_length: int = 5
    do_sample: bool = False
    top_p: float = 0.9
    top_k: int = 50
    temperature: float = 1.0
    repetition_penalty: float | None = None
    num_return_sequences: int = 1
    length_norm: LengthNorm = "published"
    seed: int | Sequence[int] | None = None

    def __post_init__(self) -> None:
        at_least_one = ("num_beams", "max_length", "num_return_sequences")
        checks = {name: (getattr(self, name) >= 1, "a number from 1") for name in at_least_one}
        checks["min_length"] = (
            0 <= self.min_length <= self.max_length,
            f"a number from 0 to max_length={self.max_length}",
        )
        checks["top_p"] = (0 < self.top_p <= 1, "a number in (0, 1]")
        checks["top_k"] = (self.top_k >= 0, "a number from 1, or 0 for all tokens")
        checks["temperature"] = (self.temperature > 0, "a number above 0")
        checks["repetition_penalty"] = (self.penalty > 0, "a number above 0, or None")
        checks["length_norm"] = (self.length_norm in ("published", "generated"), "'published' or 'generated'")
        most = self.num_return_sequences if self.do_sample else self.num_beams
        checks["num_return_sequences"] = (
            1 <= self.num_return_sequences <= most,
            f"at most num_beams={self.num_beams} without do_sample"
            if self.num_return_sequences > most
            else "a number from 1",
        )
        for name, (good, expected) in checks.items():
            if not good:
                raise ValueError(f"{name}={getattr(self, name)!r}; expected {expected}")

    @property
    def penalty(self) -> float:
        """The repetition penalty that holds."""
        if self.repetition_penalty is None:
            return SAMPLING_REPETITION_PENALTY if self.do_sample else 1.0
        return self.repetition_penalty
