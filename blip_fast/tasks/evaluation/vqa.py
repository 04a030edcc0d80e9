"""Answers to questions about images, by generation or by ranking a list of answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from blip_fast.data.tokens import cached_tokenizer, tokenize
from blip_fast.models.vqa import BlipVQA
from blip_fast.tasks.evaluation.results import Entry


class QuestionBatch(Protocol):
    """Images (B, 3, S, S) with a question each: ids and mask (B, N), padded, mask on the CPU; and the questions' own ids."""

    @property
    def images(self) -> Tensor: ...

    @property
    def question_tokens(self) -> Tensor: ...

    @property
    def question_mask(self) -> Tensor: ...

    @property
    def question_ids(self) -> Sequence[int | str]: ...


@torch.no_grad()
def generate_answers(model: BlipVQA, batches: Iterable[QuestionBatch]) -> list[Entry]:
    """Entries ``{"question_id": id, "answer": str}`` of a result file: beam search of width 3, as published."""
    entries: list[Entry] = []
    for batch in batches:
        ids = model.generate_ids(batch.images, batch.question_tokens, batch.question_mask)
        answers = cached_tokenizer().batch_decode(ids, skip_special_tokens=True)
        entries += _entries(batch, answers)
    return entries


@torch.no_grad()
def rank_answers(
    model: BlipVQA, batches: Iterable[QuestionBatch], candidates: Sequence[str], k_test: int
) -> list[Entry]:
    """The same, choosing among ``candidates``: the ``k_test`` with the likeliest first token, then the lowest loss."""
    ids, mask = tokenize(candidates, "answer")
    candidate_ids = ids.to(next(model.parameters()).device)
    entries: list[Entry] = []
    for batch in batches:
        ranking = model.rank_ids(batch.images, batch.question_tokens, batch.question_mask, candidate_ids, mask, k_test)
        entries += _entries(batch, [candidates[index] for index in ranking.best.tolist()])
    return entries


def _entries(batch: QuestionBatch, answers: Sequence[str]) -> list[Entry]:
    return [{"question_id": number, "answer": text} for number, text in zip(batch.question_ids, answers, strict=True)]
