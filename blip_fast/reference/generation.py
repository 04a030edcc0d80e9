"""Decoding: greedy search, beam search and nucleus sampling.

All three work on a :class:`Decoder` that turns new tokens into the logits of the next one, and return ids (B, n) with
n <= max_length. ``max_length`` and ``min_length`` count the start tokens (``[DEC]`` and the prompt).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

LengthNorm = Literal["published", "generated"]
SAMPLING_REPETITION_PENALTY = 1.1  # published value for nucleus sampling; searches use 1


class Decoder(Protocol):
    """What the searches need: R texts that grow together."""

    def step(self, tokens: Tensor) -> Tensor:
        """Append tokens (R, n) and return the logits (R, V) of the next token."""

    def reorder(self, rows: Tensor) -> None:
        """Let text r continue text ``rows[r]``."""


@dataclass(frozen=True)
class Limits:
    """When a text ends: its lengths in tokens, the id that ends it and the id that fills up."""

    max_length: int
    min_length: int
    eos_token_id: int
    pad_token_id: int
    repetition_penalty: float = 1.0


def process_scores(scores: Tensor, ids: Tensor, limits: Limits) -> Tensor:
    """Penalise tokens that occur in ids (R, n), then forbid the end while a text is too short; scores are (R, V).

    The penalty (arXiv 1909.05858) divides positive scores and multiplies negative ones.
    """
    if limits.repetition_penalty != 1.0:
        seen = scores.gather(1, ids)
        penalty = limits.repetition_penalty
        scores = scores.scatter(1, ids, torch.where(seen < 0, seen * penalty, seen / penalty))
    if ids.shape[1] < limits.min_length:
        scores = scores.index_fill(1, scores.new_full((1,), limits.eos_token_id, dtype=torch.long), -float("inf"))
    return scores


def nucleus_probabilities(logits: Tensor, top_p: float, top_k: int) -> Tensor:
    """Probabilities (R, V) of the ``top_k`` best tokens (0: all), then of the fewest of them that reach ``top_p`` together."""
    best = logits.topk(min(top_k, logits.shape[-1]) or logits.shape[-1], dim=-1)
    reached = best.values.softmax(dim=-1).cumsum(dim=-1) > top_p
    kept = best.values.masked_fill(F.pad(reached[:, :-1], (1, 0)), -float("inf"))
    return torch.full_like(logits, -float("inf")).scatter(1, best.indices, kept).softmax(dim=-1)


@torch.no_grad()
def single_path(decoder: Decoder, start: Tensor, limits: Limits, top_p: float | None = None, top_k: int = 50) -> Tensor:
    """One text per row of start (B, n0): always the best token, or, with ``top_p``, one drawn from the nucleus."""
    ids, tokens = start, start
    open_rows = torch.ones(start.shape[0], dtype=torch.bool, device=start.device)
    while ids.shape[1] < limits.max_length and bool(open_rows.any()):
        scores = process_scores(decoder.step(tokens).float(), ids, limits)
        if top_p is None:
            tokens = scores.argmax(dim=-1)
        else:
            tokens = torch.multinomial(nucleus_probabilities(scores, top_p, top_k), 1)[:, 0]
        tokens = tokens.masked_fill(~open_rows, limits.pad_token_id)[:, None]
        open_rows &= tokens[:, 0] != limits.eos_token_id
        ids = torch.cat([ids, tokens], dim=1)
    return ids


class Finished:
    """The best ``size`` finished texts of one image, by score."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.texts: list[tuple[float, Tensor]] = []
        self.closed = False

    def add(self, score: float, ids: Tensor) -> None:
        """Keep a text if it is among the best."""
        if len(self.texts) < self.size or score > self.worst():
            self.texts.append((score, ids))
            if len(self.texts) > self.size:
                self.texts.remove(min(self.texts, key=lambda text: text[0]))

    def worst(self) -> float:
        """Lowest score kept."""
        return min(score for score, _ in self.texts)

    def best(self) -> tuple[float, Tensor]:
        """Highest score and its ids."""
        return max(self.texts, key=lambda text: text[0])

    def close_if_beyond_reach(self, attainable: float) -> None:
        """Stop searching when all places are taken by texts at least as good as ``attainable``."""
        self.closed = self.closed or (len(self.texts) == self.size and self.worst() >= attainable)


@dataclass(frozen=True)
class Beam:
    """A hypothesis of one image: summed log-probability, newest token, row it continues, rank among candidates."""

    score: float
    token: int
    row: int
    rank: int


@torch.no_grad()
def beam_search(
    decoder: Decoder, start: Tensor, limits: Limits, num_beams: int, length_norm: LengthNorm = "published"
) -> tuple[Tensor, Tensor]:
    """The best text for each row of start (B, n0), and its score: summed log-probability over length, (B,).

    The decoder holds ``num_beams`` rows per image, image after image. Length norm "published" divides by all tokens
    before the end token, the start included; "generated" (current transformers) by the generated ones, the end counted.
    """
    if num_beams < 2:
        raise ValueError(f"num_beams={num_beams}; beam search needs at least 2, a single path is greedy search")
    prompt_length = start.shape[1]
    counted = 0 if length_norm == "published" else 1 - prompt_length  # added to the length before the newest token
    ids = tokens = start.repeat_interleave(num_beams, dim=0)
    running = torch.zeros(start.shape[0], num_beams, device=start.device)
    running[:, 1:] = -1e9  # all beams of an image start equal: only the first one counts
    finished = [Finished(num_beams) for _ in range(start.shape[0])]
    beams: list[list[Beam]] = []
    while ids.shape[1] < limits.max_length and not all(image.closed for image in finished):
        log_probs = process_scores(decoder.step(tokens).float().log_softmax(dim=-1), ids, limits)
        candidates = rank_candidates(log_probs, running)
        beams = [
            advance(image, ranked, ids, limits, ids.shape[1] + counted, length_norm)
            for image, ranked in zip(finished, candidates, strict=True)
        ]
        flat = [beam for image_beams in beams for beam in image_beams]
        running = running.new_tensor([beam.score for beam in flat]).view_as(running)
        rows = ids.new_tensor([beam.row for beam in flat])
        tokens = ids.new_tensor([beam.token for beam in flat])[:, None]
        ids = torch.cat([ids.index_select(0, rows), tokens], dim=1)
        decoder.reorder(rows)
    keep_unfinished(finished, beams, ids, prompt_length, length_norm)
    return best_texts(finished, limits), running.new_tensor([image.best()[0] for image in finished])


def rank_candidates(log_probs: Tensor, running: Tensor) -> list[list[Beam]]:
    """The 2K best continuations of each image's K beams, best first, from log-probabilities (B * K, V)."""
    batch, num_beams = running.shape
    vocabulary = log_probs.shape[1]
    totals = (log_probs + running.view(-1, 1)).view(batch, num_beams * vocabulary)
    scores, flat = totals.topk(2 * num_beams, dim=1)
    first_row = torch.arange(batch, device=flat.device)[:, None] * num_beams
    rows = (first_row + flat // vocabulary).tolist()
    columns = zip(scores.tolist(), (flat % vocabulary).tolist(), rows, strict=True)
    return [[Beam(*values, rank) for rank, values in enumerate(zip(*image, strict=True))] for image in columns]


def advance(
    finished: Finished, ranked: list[Beam], ids: Tensor, limits: Limits, length: int, length_norm: LengthNorm
) -> list[Beam]:
    """Sort one image's candidates into finished texts and the beams that go on; scores are divided by ``length``."""
    num_beams = finished.size
    if finished.closed:
        row = ranked[0].row // num_beams * num_beams
        return [Beam(0.0, limits.pad_token_id, row, rank) for rank in range(num_beams)]
    for beam in ranked[:num_beams]:
        if beam.token == limits.eos_token_id:
            finished.add(beam.score / length, ids[beam.row])
    going_on = [beam for beam in ranked if beam.token != limits.eos_token_id][:num_beams]
    best = ranked[0] if length_norm == "published" else going_on[0]
    finished.close_if_beyond_reach(best.score / length)
    return going_on


def keep_unfinished(
    finished: list[Finished], beams: list[list[Beam]], ids: Tensor, prompt_length: int, length_norm: LengthNorm
) -> None:
    """At the length limit the running beams are texts as well; "generated" takes only the K best candidates."""
    length = ids.shape[1] - (0 if length_norm == "published" else prompt_length)
    for image, (texts, running) in enumerate(zip(finished, beams, strict=True)):
        for index, beam in enumerate(running):
            if not texts.closed and (length_norm == "published" or beam.rank < texts.size):
                texts.add(beam.score / length, ids[image * texts.size + index])


def best_texts(finished: list[Finished], limits: Limits) -> Tensor:
    """The best text of each image, the end token behind it where it fits, filled up to a common length."""
    best = [image.best()[1] for image in finished]
    width = min(max(len(ids) for ids in best) + 1, limits.max_length)
    texts = best[0].new_full((len(best), width), limits.pad_token_id)
    for row, ids in enumerate(best):
        texts[row, : len(ids)] = ids
        if len(ids) < limits.max_length:
            texts[row, len(ids)] = limits.eos_token_id
    return texts
