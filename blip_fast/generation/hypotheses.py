"""What beam search has found for one image, and when it has found enough."""

from __future__ import annotations

from typing import NamedTuple

import torch

from blip_fast.generation.texts import Limits, Texts
from blip_fast.reference.generation import LengthNorm


class Candidate(NamedTuple):
    """A continuation of a beam: summed log-probability, newest token and its own, the row of the beam, rank among all."""

    score: float
    token: int
    logprob: float
    row: int
    rank: int


class Hypothesis(NamedTuple):
    """A text that counts as finished: row ``row`` of ``texts``, and the log-probability of its end (None: cut off)."""

    score: float
    texts: Texts
    row: int
    end_logprob: float | None

    def text(self, limits: Limits) -> Texts:
        """The text, its end included."""
        text = self.texts.select(torch.tensor([self.row], device=self.texts.ids.device))
        if self.end_logprob is None:
            return text
        end = text.ids.new_tensor([limits.eos_token_id])
        return text.append(end, text.token_logprobs.new_tensor([self.end_logprob]))


class ImageSearch:
    """Beam search of one image: the best ``num_beams`` finished texts, by length-normalised score."""

    def __init__(self, num_beams: int, prompt_length: int, length_norm: LengthNorm) -> None:
        self.num_beams, self.prompt_length, self.length = num_beams, prompt_length, prompt_length
        self.published = length_norm == "published"
        self.found: list[Hypothesis] = []
        self.closed = False

    def advance(self, ranked: list[Candidate], texts: Texts, limits: Limits) -> list[Candidate]:
        """Sort candidates, best first, into finished texts and the beams that go on, which are returned.

        Of the candidates that end, those ranked ``num_beams`` or worse are dropped, as published.
        """
        divisor = self.length if self.published else self.length + 1 - self.prompt_length
        for candidate in ranked[: self.num_beams]:
            if candidate.token == limits.eos_token_id:
                self.add(Hypothesis(candidate.score / divisor, texts, candidate.row, candidate.logprob))
        going_on = [candidate for candidate in ranked if candidate.token != limits.eos_token_id][: self.num_beams]
        attainable = (ranked if self.published else going_on)[0].score / divisor
        self.closed = len(self.found) == self.num_beams and self.worst() >= attainable
        self.length += 1
        return going_on

    def cut_off(self, running: list[Candidate], texts: Texts, first_row: int) -> None:
        """At the length limit the running beams, ``texts`` from ``first_row`` on, are finished as well.

        With length norm "generated" only those among the ``num_beams`` best candidates, as in transformers.
        """
        divisor = self.length if self.published else self.length - self.prompt_length
        for beam, candidate in enumerate(running):
            if self.published or candidate.rank < self.num_beams:
                self.add(Hypothesis(candidate.score / divisor, texts, first_row + beam, None))
        self.closed = True

    def add(self, hypothesis: Hypothesis) -> None:
        """Keep a text if it is among the best."""
        if len(self.found) < self.num_beams or hypothesis.score > self.worst():
            self.found.append(hypothesis)
            if len(self.found) > self.num_beams:
                self.found.remove(min(self.found, key=lambda kept: kept.score))

    def worst(self) -> float:
        """Lowest score kept."""
        return min(kept.score for kept in self.found)

    def best(self, count: int) -> list[Hypothesis]:
        """The ``count`` best texts, best first."""
        return sorted(self.found, key=lambda kept: kept.score, reverse=True)[:count]
