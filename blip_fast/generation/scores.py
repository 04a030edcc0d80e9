"""What comes out: texts, their tokens and how sure the model is of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class GeneratedIds(NamedTuple):
    """N generated texts as tensors.

    Attributes:
        ids: (N, n) int64, [DEC] and prompt first, filled up with padding behind [SEP].
        token_logprobs: (N, n) fp32, log-probability that the model gives each generated token (the end token counts),
            before penalty, minimum length, temperature and nucleus; 0 for the prompt and for padding.
        generated: (N, n) bool, which tokens these are.
    """

    ids: Tensor
    token_logprobs: Tensor
    generated: Tensor

    @property
    def scores(self) -> Tensor:
        """(N,) mean log-probability of the generated tokens; its exponential is a confidence in (0, 1]."""
        return self.token_logprobs.sum(1) / self.generated.sum(1)

    def with_texts(self, texts: list[str]) -> list[Generated]:
        """Each with its text."""
        columns = (texts, self.ids, self.token_logprobs, self.generated, self.scores.tolist())
        return [
            Generated(text, ids[new].tolist(), logprobs[new].tolist(), score)
            for text, ids, logprobs, new, score in zip(*columns, strict=True)
        ]


@dataclass(frozen=True)
class Generated:
    """One generated text and its log-probabilities (natural logarithm).

    Attributes:
        text: without prompt and special tokens.
        token_ids: the generated tokens, the end token [SEP] included where there is one.
        token_logprobs: log-probability of each, as :class:`GeneratedIds` defines it.
        score: their mean: the text's length-normalised log-probability.
    """

    text: str
    token_ids: list[int]
    token_logprobs: list[float]
    score: float
