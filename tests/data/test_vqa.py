from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from blip_fast.data.tokens import tokenize
from blip_fast.data.transforms import eval_transform
from blip_fast.data.vqa import VQATestData, VQATrainData, answer_weights
from tests.data.conftest import Annotate

TEN = ["yes"] * 6 + ["no"] * 3 + ["a big dog"]


def question(image: str, source: str = "vqa", answer: Any = TEN) -> dict[str, Any]:
    return {"question_id": 5, "question": "Is it (red)?", "answer": answer, "image": image, "dataset": source}


def test_answers_are_weighted_by_their_share(root: Path, annotate: Annotate) -> None:
    vg = root.parent / "vg"
    vg.mkdir()
    (root / "c.png").rename(vg / "c.png")
    file = annotate([question("a.png"), question("c.png", "vg", "red")])
    data = VQATrainData([file], root, vg, eval_transform(8))
    batch = data.collate([data[0], data[1]])
    assert batch.answers_per_question == (3, 1)
    assert batch.weights.dtype == torch.float32
    assert batch.weights.tolist() == pytest.approx([0.6, 0.3, 0.1, 0.2])
    ids, mask = tokenize(["yes", "no", "a big dog", "red"], "answer")
    assert torch.equal(batch.answers.input_ids, ids[mask.bool()])
    ids, mask = tokenize(["is it red?"] * 2, "question")
    assert torch.equal(batch.questions.input_ids, ids[mask.bool()])
    assert batch.images.shape == (2, 3, 8, 8)
    assert batch.images[1, 0].mean() > batch.images[0, 0].mean()


def test_shares_are_summed_as_published() -> None:
    answers, weights = answer_weights(TEN)
    assert answers == ("yes", "no", "a big dog")
    assert weights[1] == 0.1 + 0.1 + 0.1  # not 0.3, in floating point


def test_long_questions_are_cut(root: Path, annotate: Annotate) -> None:
    data = VQATrainData([annotate([question("a.png") | {"question": "why " * 60}])], root, None, eval_transform(8))
    assert len(data[0].question) == 35


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (question("a.png", "gqa"), "'dataset' is 'gqa'; expected 'vqa' or 'vg'"),
        (question("a.png", "vg"), "one of Visual Genome, and vg_root is None; expected a folder"),
        (question("../secret.png"), "leads out of vqa_root="),
        (question("a.png", answer=[]), r"'answer' is \[\]; expected a list of non-empty strings"),
    ],
)
def test_bad_entries_are_named(root: Path, annotate: Annotate, entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VQATrainData([annotate([entry])], root, None, eval_transform(8))


def test_test_questions_come_with_ids_and_padded(root: Path, annotate: Annotate) -> None:
    first = {name: value for name, value in question("a.png").items() if name != "answer"}
    second = first | {"question": "What colour is the one on the left?", "question_id": 262148000}
    data = VQATestData(annotate([first, second]), root, None, eval_transform(8))
    batch = data.collate([data[0], data[1]])
    assert batch.question_ids == (5, 262148000)
    assert batch.questions == ("is it red?", "what colour is the one on the left?")
    ids, mask = tokenize(batch.questions, "question")
    assert torch.equal(batch.question_tokens, ids)
    assert torch.equal(batch.question_mask, mask)
