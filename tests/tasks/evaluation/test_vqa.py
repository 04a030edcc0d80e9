"""Answers as entries of the result file, generated and ranked."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from blip_fast.data.tokens import cached_tokenizer, tokenize
from blip_fast.models import BlipVQA
from blip_fast.tasks.evaluation.vqa import generate_answers, rank_answers
from tests import golden
from tests.tasks.evaluation.common import smallest_config


def batch(images: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor, numbers: tuple[int, ...]) -> SimpleNamespace:
    return SimpleNamespace(images=images, question_tokens=ids, question_mask=mask, question_ids=numbers)


def test_generated_answers_of_the_original_implementation() -> None:
    tensors, _ = golden.load("vqa")
    model = golden.build(BlipVQA, "vqa")
    entries = generate_answers(model, [batch(tensors["image"], tensors["ids"], tensors["mask"], (5, 1, 9, 7))])
    answers = cached_tokenizer().batch_decode(tensors["gen.ids"], skip_special_tokens=True)
    expected = zip((5, 1, 9, 7), answers, strict=True)
    assert entries == [{"question_id": number, "answer": answer} for number, answer in expected]


def test_ranked_answers_are_those_of_the_model() -> None:
    torch.manual_seed(0)
    model = BlipVQA(smallest_config()).eval()
    images, questions = torch.randn(3, 3, 16, 16), ["what is this", "how many cats are there", "is it red"]
    candidates = ["yes", "no", "a red bus", "two", "grey cat"]
    ids, mask = tokenize(questions, "question")
    batches = [batch(images[:2], ids[:2], mask[:2], (3, 4)), batch(images[2:], ids[2:], mask[2:], (8,))]
    entries = rank_answers(model, batches, candidates, k_test=3)
    assert [entry["question_id"] for entry in entries] == [3, 4, 8]
    assert [entry["answer"] for entry in entries] == model.rank(images, questions, candidates, k=3)
