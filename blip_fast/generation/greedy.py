"""Greedy search, and the loop that it shares with sampling: every text grows by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from blip_fast.generation.prompts import Prompts
from blip_fast.generation.scores import GeneratedIds
from blip_fast.generation.session import DecodingSession
from blip_fast.generation.texts import Limits, Texts, sequences

# Scores (R, V), the numbers of the texts (R,) they belong to and the texts' lengths (R,) -> tokens (R,).
Choose: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]


def greedy_search(session: DecodingSession, prompts: Prompts, limits: Limits) -> GeneratedIds:
    """One text for each of B prompts: always the likeliest token."""
    return grow(session, prompts, limits, lambda scores, rows, lengths: scores.argmax(dim=-1))


def grow(session: DecodingSession, prompts: Prompts, limits: Limits, choose: Choose) -> GeneratedIds:
    """``session.copies`` texts for each of B prompts, each token the one that ``choose`` takes.

    A text leaves the session when it ends.
    """
    texts = Texts.begin(prompts.repeat(session.copies), limits)
    finished: list[tuple[Tensor, Texts]] = []
    rows = torch.arange(texts.ids.shape[0], device=texts.ids.device)
    logits = session.prefill(prompts).repeat_interleave(session.copies, dim=0)
    while True:
        normaliser = logits.float().logsumexp(dim=-1, keepdim=True)
        tokens = choose(texts.allowed(logits.float(), limits), rows, texts.lengths)
        logprobs = (logits.float().gather(1, tokens[:, None]) - normaliser)[:, 0]
        texts = texts.append(tokens, logprobs)
        is_open = (tokens != limits.eos_token_id) & (texts.lengths < limits.max_length)
        if not bool(is_open.all()):
            ended, left = (~is_open).nonzero()[:, 0], is_open.nonzero()[:, 0]
            finished.append((rows.index_select(0, ended), texts.select(ended)))
            if not len(left):
                return in_order(finished)
            session.keep(left)
            texts, rows, tokens = texts.select(left), rows.index_select(0, left), tokens.index_select(0, left)
        logits = session.step(tokens)


def in_order(finished: list[tuple[Tensor, Texts]]) -> GeneratedIds:
    """Texts that ended at different times, by their numbers."""
    order = torch.cat([rows for rows, _ in finished]).argsort()
    fields = zip(*(vars(texts).values() for _, texts in finished), strict=True)
    return sequences(Texts(*(torch.cat(tensors) for tensors in fields)).select(order))
