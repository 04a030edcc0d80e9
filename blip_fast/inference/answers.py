"""Answers to questions about a picture, as records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from blip_fast.data.text import pre_question
from blip_fast.generation import Generated
from blip_fast.models import BlipVQA


def answers(
    model: BlipVQA,
    image: Tensor,
    questions: Sequence[str],
    candidates: Sequence[str] | None = None,
    beams: int = 3,
    k: int = 128,
) -> list[dict[str, Any]]:
    """A record {"question", "answer", "score"} for each question about image (3, S, S).

    The answer is generated, or with candidates the one of these that the model ranks first: of the ``k`` with the
    likeliest first token. ``score`` is the mean log-probability of its tokens. Questions are cleaned as for training.
    """
    cleaned = [pre_question(question) for question in questions]
    images = image.expand(len(questions), -1, -1, -1)
    if candidates is None:
        found = model.answer(images, cleaned, beams, return_scores=True)
    else:
        found = model.rank(images, cleaned, list(candidates), k, return_scores=True)
    records = []
    for question, answer in zip(questions, found, strict=True):
        assert isinstance(answer, Generated)
        records.append({"question": question, "answer": answer.text, "score": round(answer.score, 5)})
    return records
