"""Every strategy on a small captioner: alone or in a batch, scores, early leaving, options that are refused."""

from __future__ import annotations

import pytest
import torch

import blip_fast
from blip_fast import reference
from blip_fast.generation import DecodingSession, GeneratedIds
from blip_fast.reference.text import with_first_token
from tests.generation.common import IMAGES, PROMPTS, captioner, teacher_forced
from tests.models.common import pair

STRATEGIES = {
    "greedy": dict(num_beams=1),
    "greedy, penalty": dict(num_beams=1, repetition_penalty=1.3),
    "beam": dict(num_beams=3),
    "beam, generated": dict(num_beams=3, length_norm="generated"),
    "beam, penalty": dict(num_beams=4, repetition_penalty=1.2, min_length=9),
    "sample": dict(do_sample=True, seed=[5, 6, 7], top_k=0, top_p=1.0),
    "nucleus": dict(do_sample=True, seed=[5, 6, 7], temperature=1.5),
}


def run(images, prompts, strategy, **options) -> GeneratedIds:
    settings = STRATEGIES[strategy] | options
    return captioner().generate_ids(images, prompts, return_scores=True, **settings)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_batch_of_prompts_of_different_lengths_is_its_parts(strategy):
    together = run(IMAGES, PROMPTS, strategy)
    for index, prompt in enumerate(PROMPTS):
        seed = {"seed": [STRATEGIES[strategy]["seed"][index]]} if "seed" in STRATEGIES[strategy] else {}
        alone = run(IMAGES[index : index + 1], prompt[prompt != 0], strategy, **seed)
        width = alone.ids.shape[1]
        assert torch.equal(together.ids[index, :width], alone.ids[0])
        assert (together.ids[index, width:] == 0).all()
        torch.testing.assert_close(together.scores[index], alone.scores[0])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_scores_are_what_the_model_gives_the_text(strategy):
    result = run(IMAGES, PROMPTS, strategy, num_return_sequences=1 if "greedy" in strategy else 2, seed=1)
    assert result.generated.any(1).all()
    assert result.generated[:, -1].any()  # no wider than the longest
    for row, image in enumerate(torch.arange(3).repeat_interleave(len(result.ids) // 3)):
        length = int(result.generated[row].nonzero().max()) + 1
        prompt_length = int(((PROMPTS[image] != 0) & (PROMPTS[image] != 102)).sum())
        assert result.generated[row].nonzero()[:, 0].tolist() == list(range(prompt_length, length))
        expected = teacher_forced(captioner(), IMAGES[image : image + 1], result.ids[row : row + 1, :length])[0]
        actual = result.token_logprobs[row]
        torch.testing.assert_close(actual[prompt_length:length], expected[prompt_length:], rtol=1e-4, atol=1e-5)
        assert (actual[:prompt_length] == 0).all()
        assert (actual[length:] == 0).all()
        torch.testing.assert_close(result.scores[row], expected[prompt_length:].mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_layers_in_parts_write_the_same(strategy):
    """As they are computed where a layer has no kernel for all of it, again for prompts of different lengths."""
    whole = run(IMAGES, PROMPTS, strategy)
    with blip_fast.backend("reference", op="decode_layer"):
        parts = run(IMAGES, PROMPTS, strategy)
    assert torch.equal(parts.ids, whole.ids)
    torch.testing.assert_close(parts.token_logprobs, whole.token_logprobs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [dict(num_beams=1), dict(num_beams=3), dict(num_beams=3, length_norm="generated")])
def test_the_reference_writes_the_same(options):
    plain = pair(reference.BlipCaptioner, reference.BlipCaptioner)[0].eval()
    plain.load_state_dict(captioner().state_dict())
    for prompt in PROMPTS:
        ids = prompt[prompt != 0]
        for length in (dict(min_length=0, max_length=9), dict(min_length=12, max_length=20)):
            inputs = (IMAGES, ids)
            assert torch.equal(
                captioner().generate_ids(*inputs, **options, **length), plain.generate_ids(*inputs, **options, **length)
            )


def test_the_best_beams_come_first():
    best = run(IMAGES, PROMPTS, "beam, generated")
    three = run(IMAGES, PROMPTS, "beam, generated", num_return_sequences=3)
    assert len(three.ids) == 9
    assert torch.equal(three.ids[::3, : best.ids.shape[1]], best.ids)
    scores = three.scores.view(3, 3)
    assert (scores[:, :-1] >= scores[:, 1:]).all()
    texts = {tuple(row) for row in three.ids.tolist()}
    assert len(texts) == 9


@pytest.mark.parametrize("strategy", ["greedy", "beam"])
def test_finished_texts_leave_the_batch(strategy, monkeypatch):
    rows = []
    step = DecodingSession.step
    monkeypatch.setattr(DecodingSession, "step", lambda self, tokens: rows.append(len(tokens)) or step(self, tokens))
    images = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(8)) * 4
    result = run(images, PROMPTS[0][:4], strategy, min_length=0)
    ended = result.generated.sum(1)
    assert ended.min() < ended.max(), "the case must hold short and long texts"
    assert rows[-1] < rows[0]
    assert rows == sorted(rows, reverse=True)
    if strategy == "greedy":
        assert rows == [int((ended > step).sum()) for step in range(1, int(ended.max()))]


def test_prompts_are_kept_and_ends_allowed_from_the_minimum_on():
    for minimum in (0, 7, 20):
        ids = run(IMAGES, PROMPTS, "greedy", min_length=minimum).ids
        starts = with_first_token(PROMPTS, captioner().config.dec_token_id)
        for row, start in zip(ids, starts, strict=True):
            kept = start[(start != 0) & (start != 102)]
            assert torch.equal(row[: len(kept)], kept)
        ends = (ids == 102).float().argmax(1)[(ids == 102).any(1)]
        assert (ends >= minimum).all()


def test_precision_and_modes():
    model = captioner()
    with torch.autocast("cpu", torch.bfloat16):
        assert model.generate_ids(IMAGES, PROMPTS).shape[0] == 3
    assert not model.generate_ids(IMAGES, PROMPTS).requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_sampling_does_not_look_at_beams():
    ids = [run(IMAGES, PROMPTS, "nucleus", num_beams=beams).ids for beams in (1, 20_000)]
    assert torch.equal(*ids)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_beams=0), "num_beams=0; expected a number from 1"),
        (dict(num_beams=151), "num_beams=151; expected at most half of vocab_size=300"),
        (dict(max_length=5), "max_length=5 leaves no room behind a start of 5 tokens"),
        (dict(max_length=41), "max_length=41; expected at most max_position_embeddings=40"),
        (dict(min_length=30), "min_length=30; expected a number from 0 to max_length=20"),
        (dict(top_p=0.0, do_sample=True), r"top_p=0\.0; expected a number in \(0, 1\]"),
        (dict(top_p=1.5, do_sample=True), r"top_p=1\.5; expected a number in \(0, 1\]"),
        (dict(top_k=-1), "top_k=-1; expected a number from 1, or 0 for all tokens"),
        (dict(temperature=0.0), r"temperature=0\.0; expected a number above 0"),
        (dict(repetition_penalty=0.0), r"repetition_penalty=0\.0; expected a number above 0"),
        (dict(num_return_sequences=0), "num_return_sequences=0; expected a number from 1"),
        (dict(num_return_sequences=4), "num_return_sequences=4; expected at most num_beams=3 without do_sample"),
        (dict(length_norm="mean"), "length_norm='mean'; expected 'published' or 'generated'"),
        (dict(do_sample=True, seed=[1, 2]), "seed has 2 numbers for 3 images; expected one per image"),
        (dict(do_sample=True, seed=[1, 2, 3, 4]), "seed has 4 numbers for 3 images; expected one per image"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        captioner().generate_ids(IMAGES, PROMPTS, **options)
