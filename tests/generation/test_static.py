"""Steps of fixed shapes do what steps of growing and shrinking shapes do; on a GPU as a CUDA graph, which is used again."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch

import blip_fast
from blip_fast.generation import DecodingSession, GeneratedIds, Options, generate, prompts_of
from blip_fast.generation.decode import has_hooks, search_in
from blip_fast.generation.kept import KeptSessions, forget_sessions, kept_session
from blip_fast.generation.static import StaticSession
from blip_fast.generation.texts import Limits
from blip_fast.ops.registry import OPERATIONS
from tests.generation.common import IMAGES, PROMPTS, captioner

OPTIONS = [
    Options(num_beams=1, min_length=0),
    Options(num_beams=3, min_length=0),
    Options(num_beams=3, repetition_penalty=1.2, length_norm="generated", num_return_sequences=2),
    Options(do_sample=True, seed=4, num_return_sequences=4, temperature=1.5, min_length=0),
]


def states_of(images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return captioner().visual_encoder(images)


def run(session: DecodingSession, options: Options, prompts: torch.Tensor = PROMPTS) -> GeneratedIds:
    config = captioner().config
    with torch.inference_mode():
        return search_in(session, prompts_of(prompts, 3, config), Limits.of(options, config), options)


@pytest.mark.parametrize("options", OPTIONS)
def test_static_steps_and_their_second_use(options):
    decoder, copies = captioner().text_decoder, 4 if options.do_sample else options.num_beams
    for images in (IMAGES, IMAGES.flip(0) * 2):
        states = states_of(images)
        grown = run(DecodingSession(decoder, states, copies, 20), options)
        with torch.inference_mode(), kept_session(StaticSession, decoder, states, copies, 20) as session:
            static = run(session, options)
        assert torch.equal(static.ids, grown.ids)
        torch.testing.assert_close(static.token_logprobs, grown.token_logprobs, rtol=1e-5, atol=1e-5)
    with torch.inference_mode(), kept_session(StaticSession, decoder, states, copies, 20) as again:
        assert again is session
        with kept_session(StaticSession, decoder, states, copies, 20) as other:  # it is in use
            assert other is not session


def test_places_that_are_not_written_are_masked_for_prompts_of_one_length():
    decoder, states = captioner().text_decoder, states_of(IMAGES)
    grown, static = (kind(decoder, states, 1, 20) for kind in (DecodingSession, StaticSession))
    grown.kernel = static.kernel = None  # in parts, as on a GPU
    expected, got = (run(session, OPTIONS[0], PROMPTS[0, :4]) for session in (grown, static))
    assert torch.equal(got.ids, expected.ids)
    torch.testing.assert_close(got.token_logprobs, expected.token_logprobs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS[:2])
def test_a_second_use_knows_nothing_of_the_first(options):
    decoder, states = copy.deepcopy(captioner().text_decoder), states_of(IMAGES)
    found = []
    for given in (states, states * float("nan"), states):
        with torch.inference_mode(), kept_session(StaticSession, decoder, given, options.num_beams, 20) as session:
            session.kernel = None  # in parts, as on a GPU
            found.append(run(session, options))
    assert torch.equal(found[0].token_logprobs, found[2].token_logprobs)


def test_a_session_is_let_go_before_the_next_is_made():
    decoder, states = copy.deepcopy(captioner().text_decoder), states_of(IMAGES)
    with torch.inference_mode():
        with kept_session(StaticSession, decoder, states, 1, 20) as session:
            kept = weakref.ref(session.cache)
        del session
        assert kept() is not None
        with kept_session(StaticSession, decoder, states[:2], 1, 20) as session:
            gc.collect()
            assert kept() is None
            kept = weakref.ref(session.cache)
        del session
        forget_sessions(decoder)
        gc.collect()
        assert kept() is None


def test_a_forced_backend_gets_a_session_of_its_own():
    decoder, states = copy.deepcopy(captioner().text_decoder), states_of(IMAGES)
    with torch.inference_mode(), kept_session(StaticSession, decoder, states, 1, 20) as session:
        pass
    for name in ("cross_attention", "linear"):
        with blip_fast.backend("reference", op=name), torch.inference_mode():
            differs = OPERATIONS[name].unavailable("cpu") is None
            with kept_session(StaticSession, decoder, states, 1, 20) as other:
                assert (other is not session) == differs


@pytest.mark.parametrize("sizes", [(1, 19), (2, 20)])
def test_other_sizes_get_a_session_of_their_own(sizes):
    decoder, states = copy.deepcopy(captioner().text_decoder), states_of(IMAGES)
    with torch.inference_mode(), kept_session(StaticSession, decoder, states, 1, 20) as session:
        pass
    with torch.inference_mode(), kept_session(StaticSession, decoder, states, *sizes) as other:
        assert other is not session


def test_copies_of_a_decoder_keep_nothing():
    decoder = copy.deepcopy(captioner().text_decoder)
    with torch.inference_mode(), kept_session(StaticSession, decoder, states_of(IMAGES), 1, 20) as session:
        pass
    for twin in (copy.deepcopy(decoder), pickle.loads(pickle.dumps(decoder))):
        assert isinstance(twin.kept_sessions, KeptSessions)
        with torch.inference_mode(), kept_session(StaticSession, twin, states_of(IMAGES), 1, 20) as other:
            assert other is not session
            assert other.decoder is twin
    decoder.load_state_dict({name: weight.clone() for name, weight in decoder.state_dict().items()}, assign=True)
    with torch.inference_mode(), kept_session(StaticSession, decoder, states_of(IMAGES), 1, 20) as other:
        assert other is not session


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", OPTIONS)
def test_graphed_steps(options):
    model = captioner()
    decoder = copy.deepcopy(model.text_decoder).cuda()
    for images in (IMAGES, IMAGES.flip(0) * 2):
        states = states_of(images)
        expected = generate(model.text_decoder, states, prompts_of(PROMPTS, 3, model.config), options, model.config)
        prompts = prompts_of(PROMPTS.cuda(), 3, model.config)
        graphed = generate(decoder, states.cuda(), prompts, options, model.config)
        assert torch.equal(graphed.ids.cpu(), expected.ids)
        torch.testing.assert_close(graphed.token_logprobs.cpu(), expected.token_logprobs, rtol=1e-4, atol=1e-4)


def test_models_with_hooks_are_known():
    decoder = copy.deepcopy(captioner().text_decoder)
    assert not has_hooks(decoder)
    dense = decoder.bert.encoder.layer[0].output.dense
    for register in (dense.register_forward_hook, dense.register_forward_pre_hook):
        handle = register(lambda *call: None)
        assert has_hooks(decoder)
        handle.remove()
    assert not has_hooks(decoder)
