"""The reference VQA model against the original implementation."""

from __future__ import annotations

import pytest
import torch

from blip_fast.reference import BlipVQA
from tests import golden

CASE = "vqa"


def test_loss_and_gradients() -> None:
    tensors, _ = golden.load(CASE)
    model = golden.build(BlipVQA, CASE).train()
    names = ("image", "ids", "mask", "answer_ids", "answer_mask", "n", "weights")
    out = model(*(tensors[name] for name in names))
    torch.testing.assert_close(out.loss, tensors["loss"], rtol=1e-5, atol=0)
    out.loss.backward()
    golden.assert_gradients(model, CASE, "grad.", "gradient_check")


def test_question_states_and_answer_losses() -> None:
    tensors, _ = golden.load(CASE)
    model = golden.build(BlipVQA, CASE)
    states = model.question_states(tensors["image"], tensors["ids"], tensors["mask"])
    torch.testing.assert_close(states, tensors["question_states_encoded"], rtol=0, atol=2e-5)
    repeated = (states.repeat_interleave(tensors["n"], 0), tensors["mask"].repeat_interleave(tensors["n"], 0))
    losses = model.answer_losses(tensors["answer_ids"], tensors["answer_mask"], *repeated)
    torch.testing.assert_close(losses, tensors["answer_loss"], rtol=1e-5, atol=0)


def test_generation() -> None:
    tensors, sidecar = golden.load(CASE)
    run = sidecar["inference_runs"]["generate"]
    limits = (run["num_beams"], run["max_length"], run["min_length"])
    ids = golden.build(BlipVQA, CASE).generate_ids(tensors["image"], tensors["ids"], tensors["mask"], *limits)
    assert torch.equal(ids, tensors["gen.ids"])


def test_ranking() -> None:
    tensors, sidecar = golden.load(CASE)
    inputs = [tensors[name] for name in ("image", "ids", "mask", "cand_ids", "cand_mask")]
    ranking = golden.build(BlipVQA, CASE).rank_ids(*inputs, k=sidecar["inference_runs"]["rank"]["k_test"])
    assert torch.equal(ranking.best, tensors["rank.max_ids"])
    order, expected = ranking.kept.sort(dim=1), tensors["rank.topk_ids"].sort(dim=1)  # ties may change the order
    assert torch.equal(order.values, expected.values)
    scores = tensors["rank.log_probs_sum"].gather(1, expected.indices)
    torch.testing.assert_close(ranking.scores.gather(1, order.indices), scores, rtol=1e-5, atol=1e-5)


def test_answer_counts_are_checked() -> None:
    tensors, _ = golden.load(CASE)
    names = ("image", "ids", "mask", "answer_ids", "answer_mask")
    with pytest.raises(ValueError, match="answers_per_question"):
        golden.build(BlipVQA, CASE)(*(tensors[name] for name in names), [1, 1, 1, 1], tensors["weights"])
