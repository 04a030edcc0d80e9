"""Visual question answering: VQA v2 and the question-answer pairs of Visual Genome."""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from blip_fast.data.annotations import Entry, Paths, read_records
from blip_fast.data.bad_samples import BadSamples
from blip_fast.data.batches import Batch, Sample, broken_in
from blip_fast.data.packing import PackedTexts, pack_lists, pad_lists
from blip_fast.data.roots import Root
from blip_fast.data.samples import OnBroken, PictureData, Transform
from blip_fast.data.text import pre_question
from blip_fast.data.tokens import TextEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VISUAL_GENOME_WEIGHT = 0.2  # of the one answer to a question of Visual Genome


@dataclasses.dataclass(frozen=True)
class QuestionRecord:
    """One question: data set ("vqa" or "vg"), path below its root, question as written, id, answers with weights."""

    source: str
    image: str
    question: str
    question_id: int | str
    answers: tuple[str, ...]
    weights: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class AnsweredSample(Sample):
    """A picture (3, S, S) float32, the ids of its question and of the n distinct answers, and their weights (n)."""

    image: torch.Tensor
    question: list[int]
    answers: list[list[int]]
    weights: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class VQATrainBatch(Batch):
    """B questions with A answers in all, question after question.

    images (B, 3, S, S) float32; questions and answers packed; weights (A,) float32; answers of each question (B).
    """

    images: torch.Tensor
    questions: PackedTexts
    answers: PackedTexts
    answers_per_question: tuple[int, ...]
    weights: torch.Tensor


@dataclasses.dataclass(frozen=True)
class QuestionSample(Sample):
    """A picture (3, S, S) float32, its cleaned question with ids, and the question's id."""

    image: torch.Tensor
    question: str
    tokens: list[int]
    question_id: int | str


@dataclasses.dataclass(frozen=True)
class VQATestBatch(Batch):
    """B questions: images (B, 3, S, S) float32; questions as strings, and padded ids and mask (B, N) int64; their ids."""

    images: torch.Tensor
    questions: tuple[str, ...]
    question_tokens: torch.Tensor
    question_mask: torch.Tensor
    question_ids: tuple[int | str, ...]


class VQATrainData(PictureData[AnsweredSample, QuestionRecord]):
    """Questions of ``vqa_{train,val}.json`` and ``vg_qa.json`` with their answers.

    An entry of VQA v2 has ten answers: each distinct one is weighted by its share. One of Visual Genome has one answer,
    weighted 0.2.

    Args:
        annotation_files: JSON lists of ``{"dataset": "vqa" or "vg", "image", "question", "answer"[, "question_id"]}``.
        vqa_root, vg_root: pictures of the two data sets; ``vg_root`` may be None where no entry needs it.
        max_answer_tokens: answers are cut to so many ids; None, as published, cuts nothing.
        transform, tokenizer, bad, on_broken, keep_decoded: as for `PretrainData`.
    """

    def __init__(
        self,
        annotation_files: Paths,
        vqa_root: str | os.PathLike[str],
        vg_root: str | os.PathLike[str] | None,
        transform: Transform,
        *,
        max_words: int = 50,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_tokens: int | None = None,
        max_answer_tokens: int | None = None,
        bad: BadSamples | None = None,
        on_broken: OnBroken = "replace",
        keep_decoded: bool = False,
    ) -> None:
        super().__init__(transform, on_broken, keep_decoded)
        self.roots = _roots(vqa_root, vg_root)
        self.max_words = max_words
        self.question_encoder = TextEncoder("question", tokenizer, max_tokens)
        self.answer_encoder = TextEncoder("answer", tokenizer, max_answer_tokens)
        self.records = read_records(annotation_files, QuestionRecord, self._to_record, bad)

    def make_sample(self, index: int, broken: list[str]) -> AnsweredSample:
        record = self.records[index]
        image = self.image(self.roots[record.source], record.image, broken)
        question = self.question_encoder(pre_question(record.question, self.max_words))
        return AnsweredSample(image, question, self.answer_encoder.encode(record.answers), record.weights)

    @staticmethod
    def collate(samples: Sequence[AnsweredSample]) -> VQATrainBatch:
        """Stack pictures, pack questions and answers."""
        return VQATrainBatch(
            images=torch.stack([sample.image for sample in samples]),
            questions=pack_lists([sample.question for sample in samples]),
            answers=pack_lists([answer for sample in samples for answer in sample.answers]),
            answers_per_question=tuple(len(sample.answers) for sample in samples),
            weights=torch.tensor([weight for sample in samples for weight in sample.weights]),
            broken=broken_in(samples),
        )

    def _to_record(self, entry: Entry) -> QuestionRecord:
        source = _source(entry, self.roots)
        answers, weights = answer_weights(entry.texts("answer"))
        if source == "vg":
            weights = (VISUAL_GENOME_WEIGHT,) * len(answers)
        question_id = entry.id("question_id") if "question_id" in entry else ""
        return QuestionRecord(
            source, entry.path("image", self.roots[source]), entry.text("question"), question_id, answers, weights
        )


class VQATestData(PictureData[QuestionSample, QuestionRecord]):
    """Questions of ``vqa_test.json``: ``{"dataset", "image", "question", "question_id"}``; answers are not read."""

    def __init__(
        self,
        annotation_file: str | os.PathLike[str],
        vqa_root: str | os.PathLike[str],
        vg_root: str | os.PathLike[str] | None,
        transform: Transform,
        *,
        max_words: int = 50,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_tokens: int | None = None,
        bad: BadSamples | None = None,
        on_broken: OnBroken = "raise",
        keep_decoded: bool = False,
    ) -> None:
        super().__init__(transform, on_broken, keep_decoded)
        self.roots = _roots(vqa_root, vg_root)
        self.max_words = max_words
        self.encoder = TextEncoder("question", tokenizer, max_tokens)
        self.records = read_records([annotation_file], QuestionRecord, self._to_record, bad)

    def make_sample(self, index: int, broken: list[str]) -> QuestionSample:
        record = self.records[index]
        question = pre_question(record.question, self.max_words)
        image = self.image(self.roots[record.source], record.image, broken)
        return QuestionSample(image, question, self.encoder(question), record.question_id)

    @staticmethod
    def collate(samples: Sequence[QuestionSample]) -> VQATestBatch:
        """Stack pictures, pad questions."""
        tokens, mask = pad_lists([sample.tokens for sample in samples])
        return VQATestBatch(
            images=torch.stack([sample.image for sample in samples]),
            questions=tuple(sample.question for sample in samples),
            question_tokens=tokens,
            question_mask=mask,
            question_ids=tuple(sample.question_id for sample in samples),
            broken=broken_in(samples),
        )

    def _to_record(self, entry: Entry) -> QuestionRecord:
        source = _source(entry, self.roots)
        image = entry.path("image", self.roots[source])
        return QuestionRecord(source, image, entry.text("question"), entry.id("question_id"), (), ())


def answer_weights(answers: Sequence[str]) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """The distinct answers in the order given, and the share of each; summed up one by one, as published."""
    weights: dict[str, float] = collections.defaultdict(float)
    for answer in answers:
        weights[answer] += 1 / len(answers)
    return tuple(weights), tuple(weights.values())


def _roots(vqa_root: str | os.PathLike[str], vg_root: str | os.PathLike[str] | None) -> Mapping[str, Root]:
    roots = {"vqa": Root(vqa_root, "vqa_root")}
    return roots if vg_root is None else {**roots, "vg": Root(vg_root, "vg_root")}


def _source(entry: Entry, roots: Mapping[str, Root]) -> str:
    source = entry.text("dataset")
    if source not in ("vqa", "vg"):
        raise entry.error("dataset", "'vqa' or 'vg'")
    if source not in roots:
        raise ValueError(f"{entry.where}: its picture is one of Visual Genome, and vg_root is None; expected a folder")
    return source
