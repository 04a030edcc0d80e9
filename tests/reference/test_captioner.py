"""The reference captioner against the original implementation: loss, gradients and every generated id."""

from __future__ import annotations

import pytest
import torch

from blip_fast.reference import BlipCaptioner
from blip_fast.reference.captioner import start_ids
from blip_fast.reference.decoder import DecodingSession
from blip_fast.reference.generation import Limits, beam_search, nucleus_probabilities, process_scores
from tests import golden

CASE = "caption"
RUNS = ["greedy", "greedy_rp11", "beam3", "beam3_min14", "beam3_rp11", "beam3_max40", "beam4_default_lengths",
        "beam5_min8_max12"]  # fmt: skip
ORIGINAL_DEFAULTS = {"max_length": 30, "min_length": 10}


def build() -> BlipCaptioner:
    return golden.build(BlipCaptioner, CASE)


def settings(run: str) -> dict[str, float]:
    stored = golden.load(CASE)[1]["generation_runs"][run]
    names = ("num_beams", "max_length", "min_length", "repetition_penalty")
    return ORIGINAL_DEFAULTS | {name: stored[name] for name in names if name in stored}


def test_loss_and_gradients() -> None:
    tensors, sidecar = golden.load(CASE)
    model = build().train()
    out = model(tensors["image"], tensors["ids"], tensors["mask"], prompt_length=sidecar["hyper"]["prompt_length"])
    torch.testing.assert_close(out.loss, tensors["loss"], rtol=1e-5, atol=0)
    out.loss.backward()
    golden.assert_gradients(model, CASE, "grad.", "gradient_check")


@pytest.mark.parametrize("run", RUNS)
def test_generated_ids(run: str) -> None:
    tensors, _ = golden.load(CASE)
    ids = build().generate_ids(tensors["gen_images"], tensors["prompt_ids"], **settings(run))
    assert torch.equal(ids, tensors[f"gen.{run}.ids"])


@pytest.mark.parametrize("run", [run for run in RUNS if run.startswith("beam")])
def test_beam_scores(run: str) -> None:
    tensors, _ = golden.load(CASE)
    model, values = build(), settings(run)
    beams = values.pop("num_beams")
    states = model.visual_encoder(tensors["gen_images"]).repeat_interleave(beams, dim=0)
    limits = Limits(eos_token_id=102, pad_token_id=0, **values)
    start = start_ids(tensors["prompt_ids"], 4, model.config)
    ids, scores = beam_search(DecodingSession(model.text_decoder, states), start, limits, beams)
    assert torch.equal(ids, tensors[f"gen.{run}.ids"])
    torch.testing.assert_close(scores, tensors[f"gen.{run}.scores"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("run", RUNS)
def test_decoder_logits(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first calls of the decoder see the recorded tokens and give the recorded logits."""
    tensors, _ = golden.load(CASE)
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []
    original = DecodingSession.step

    def step(self: DecodingSession, tokens: torch.Tensor) -> torch.Tensor:
        calls.append((tokens, original(self, tokens)))
        return calls[-1][1]

    monkeypatch.setattr(DecodingSession, "step", step)
    build().generate_ids(tensors["gen_images"], tensors["prompt_ids"], **settings(run))
    assert len(calls) == golden.load(CASE)[1]["generation_runs"][run]["decoder_calls"]
    for index, (tokens, logits) in enumerate(calls[:3], start=1):
        assert torch.equal(tokens, tensors[f"gen.{run}.step{index}.input_ids"])
        if f"gen.{run}.step{index}.logits" in tensors:
            torch.testing.assert_close(logits, tensors[f"gen.{run}.step{index}.logits"], rtol=0, atol=2e-5)


def test_nucleus_probabilities() -> None:
    """Along the recorded draws, the probabilities offered to the sampler are the recorded ones."""
    tensors, sidecar = golden.load(CASE)
    model, run = build(), sidecar["generation_runs"]["nucleus"]
    limits = Limits(run["max_length"], run["min_length"], 102, 0, run["repetition_penalty"])
    session = DecodingSession(model.text_decoder, model.visual_encoder(tensors["gen_images"]))
    ids = tokens = start_ids(tensors["prompt_ids"], 4, model.config)
    for index in range(4):
        scores = process_scores(session.step(tokens), ids, limits)
        probabilities = nucleus_probabilities(scores, run["top_p"], run["top_k"])
        expected = tensors[f"gen.nucleus.sample_probs_step{index + 1}"]
        assert torch.equal(probabilities > 0, expected > 0)
        torch.testing.assert_close(probabilities, expected, rtol=1e-4, atol=1e-6)
        tokens = tensors["gen.nucleus.sample_tokens"][:, index : index + 1]
        ids = torch.cat([ids, tokens], dim=1)
    assert torch.equal(ids, tensors["gen.nucleus.ids"][:, : ids.shape[1]])
