"""Steps of fixed shapes do what steps of growing and shrinking shapes do; on a GPU as a CUDA graph."""

from __future__ import annotations

import copy

import pytest
import torch

from blip_fast.generation import Options, generate, prompts_of
from blip_fast.generation.session import DecodingSession
from blip_fast.generation.static import GraphedSession, StaticSession
from tests.generation.common import IMAGES, PROMPTS, captioner

OPTIONS = [
    Options(num_beams=1, min_length=0),
    Options(num_beams=3, min_length=0),
    Options(num_beams=3, repetition_penalty=1.2, length_norm="generated", num_return_sequences=2),
    Options(do_sample=True, seed=4, num_return_sequences=4, temperature=1.5, min_length=0),
]


def run(session, options, device, monkeypatch):
    monkeypatch.setattr("blip_fast.generation.decode.DecodingSession", session)
    monkeypatch.setattr("blip_fast.generation.decode.GraphedSession", session)
    model = captioner()
    with torch.no_grad():
        states = model.visual_encoder(IMAGES).to(device)
    prompts = prompts_of(PROMPTS.to(device), len(PROMPTS), model.config)
    decoder = model.text_decoder if device == "cpu" else copy.deepcopy(model.text_decoder).to(device)
    return generate(decoder, states, prompts, options, model.config)


@pytest.mark.parametrize("options", OPTIONS)
def test_static_steps(options, monkeypatch):
    grown, static = (run(session, options, "cpu", monkeypatch) for session in (DecodingSession, StaticSession))
    assert torch.equal(static.ids, grown.ids)
    torch.testing.assert_close(static.token_logprobs, grown.token_logprobs, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", OPTIONS)
def test_graphed_steps(options, monkeypatch):
    expected = run(DecodingSession, options, "cpu", monkeypatch)
    graphed = run(GraphedSession, options, "cuda", monkeypatch)
    assert torch.equal(graphed.ids.cpu(), expected.ids)
    torch.testing.assert_close(graphed.token_logprobs.cpu(), expected.token_logprobs, rtol=1e-4, atol=1e-4)
