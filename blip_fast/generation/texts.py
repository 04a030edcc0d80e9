"""Texts while they grow: their tokens, how likely each was, and the rules that their next token obeys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from blip_fast.config import BlipConfig
from blip_fast.generation.options import Options
from blip_fast.generation.prompts import Prompts
from blip_fast.generation.scores import GeneratedIds


@dataclass(frozen=True)
class Limits:
    """When a text ends, and what it may not say."""

    max_length: int
    min_length: int
    repetition_penalty: float
    eos_token_id: int
    pad_token_id: int

    @classmethod
    def of(cls, options: Options, config: BlipConfig) -> Limits:
        """The limits that ``options`` set for a model."""
        ids = (config.sep_token_id, config.pad_token_id)
        return cls(options.max_length, options.min_length, options.penalty, *ids)


@dataclass(frozen=True)
class Texts:
    """R texts: ids and log-probabilities (R, max_length), their lengths (R,), and the lengths of their prompts (R,)."""

    ids: Tensor
    token_logprobs: Tensor
    lengths: Tensor
    prompt_lengths: Tensor

    @classmethod
    def begin(cls, prompts: Prompts, limits: Limits) -> Texts:
        """Texts that hold their prompts only.

        Raises ValueError where a prompt leaves no room.
        """
        rows, width = prompts.ids.shape
        if width >= limits.max_length:
            raise ValueError(f"max_length={limits.max_length} leaves no room behind a start of {width} tokens")
        ids = prompts.ids.new_full((rows, limits.max_length), limits.pad_token_id)
        ids[:, :width] = prompts.ids
        zeros = torch.zeros(ids.shape, dtype=torch.float32, device=ids.device)
        return cls(ids, zeros, prompts.lengths, prompts.lengths)

    def select(self, rows: Tensor) -> Texts:
        """Texts ``rows``, in that order; one may occur several times."""
        return Texts(*(tensor.index_select(0, rows) for tensor in vars(self).values()))

    def append(self, tokens: Tensor, logprobs: Tensor) -> Texts:
        """These texts, each longer by one of tokens (R,) of log-probability (R,)."""
        here = self.lengths[:, None]
        ids = self.ids.scatter(1, here, tokens[:, None])
        token_logprobs = self.token_logprobs.scatter(1, here, logprobs[:, None])
        return Texts(ids, token_logprobs, self.lengths + 1, self.prompt_lengths)

    def allowed(self, scores: Tensor, limits: Limits) -> Tensor:
        """Scores (R, V) of next tokens after the repetition penalty and, in place, without ends that come too early."""
        if limits.repetition_penalty != 1.0:
            columns = torch.arange(self.ids.shape[1], device=self.ids.device)
            said = torch.where(columns < self.lengths[:, None], self.ids, self.ids[:, :1])
            seen, penalty = scores.gather(1, said), limits.repetition_penalty
            scores = scores.scatter(1, said, torch.where(seen < 0, seen * penalty, seen / penalty))
        if limits.min_length > 0:
            end = scores[:, limits.eos_token_id]
            end.masked_fill_(self.lengths < limits.min_length, -float("inf"))
        return scores


def sequences(texts: Texts) -> GeneratedIds:
    """The texts as a result, no wider than the longest."""
    width = int(texts.lengths.max())
    columns = torch.arange(width, device=texts.ids.device)
    generated = (columns >= texts.prompt_lengths[:, None]) & (columns < texts.lengths[:, None])
    return GeneratedIds(texts.ids[:, :width], texts.token_logprobs[:, :width], generated)
