"""A transformers captioner or VQA model that generates with blip_fast gives the ids of transformers' own `generate`."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from transformers import (
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    GenerationConfig,
)

from blip_fast.checkpoints.huggingface import hf_config
from blip_fast.integrations import speed_up
from blip_fast.models import BlipVQA
from tests.generation.common import captioner
from tests.models.common import pair, texts

IMAGES = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(9)) * 3
PROMPT = torch.tensor([101, 120, 130, 102])
PROMPTS = PROMPT.repeat(len(IMAGES), 1)
QUESTIONS, MASK = texts(len(IMAGES), 8)


@pytest.fixture
def model(tmp_path) -> BlipForConditionalGeneration:
    captioner().save_pretrained(tmp_path / "hf", format="hf")
    return BlipForConditionalGeneration.from_pretrained(tmp_path / "hf").eval()


@pytest.fixture
def vqa(tmp_path) -> BlipForQuestionAnswering:
    model = pair(BlipVQA, BlipVQA)[0].eval()
    model.text_decoder.cls.predictions.bias.data[102] = 0.3  # some answers end early
    model.save_pretrained(tmp_path / "vqa", format="hf")
    return BlipForQuestionAnswering.from_pretrained(tmp_path / "vqa").eval()


def own_generate(model: Any, *args: Any, **options: Any) -> Tensor:
    return type(model).generate(model, *args, **options)


def assert_same(ids: Tensor, expected: Tensor) -> None:
    """Equal up to the end token; behind it transformers has that token or padding."""
    ended = (expected == 102).long().cumsum(1) - (expected == 102).long() > 0
    expected = expected.masked_fill(ended, 0)
    width = max(ids.shape[1], expected.shape[1])
    padded = [torch.nn.functional.pad(texts, (0, width - texts.shape[1])) for texts in (ids, expected)]
    assert torch.equal(*padded)


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(max_length=20),
        dict(max_new_tokens=7),
        dict(num_beams=3, min_length=6, max_length=14),
        dict(num_beams=3, min_new_tokens=4, max_new_tokens=9, repetition_penalty=1.2),
        dict(num_beams=4, max_length=9, num_return_sequences=3),
        dict(num_beams=3, length_penalty=1.0, early_stopping=False, num_beam_groups=1, use_cache=True),
        dict(generation_config=GenerationConfig(num_beams=3, max_new_tokens=6)),
        dict(generation_config=GenerationConfig(num_beams=3, max_new_tokens=6), num_beams=2),
    ],
)
def test_same_ids(model, options):
    for inputs in ((IMAGES,), (IMAGES, PROMPTS), (IMAGES, PROMPTS, torch.ones_like(PROMPTS))):
        expected = own_generate(model, *(part.clone() for part in inputs), **options)
        assert_same(speed_up(model).generate(*inputs, **options), expected)
        assert len({tuple(row) for row in expected.tolist()}) > 1
    assert torch.equal(PROMPTS[0], PROMPT)  # transformers overwrites the first token


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(max_length=9),
        dict(num_beams=3, min_length=4, max_new_tokens=8),
        dict(num_beams=3, max_length=9, num_return_sequences=2, repetition_penalty=1.3),
        dict(generation_config=GenerationConfig(num_beams=2, max_new_tokens=6)),
    ],
)
def test_same_answers(vqa, options):
    expected = own_generate(vqa, QUESTIONS, IMAGES, MASK, **options)
    whole = own_generate(vqa, QUESTIONS, IMAGES, **options)
    speed_up(vqa)
    assert_same(vqa.generate(QUESTIONS, IMAGES, MASK, **options), expected)
    assert_same(vqa.generate(input_ids=QUESTIONS.tolist(), pixel_values=IMAGES, **options), whole)
    assert len({tuple(row) for row in expected.tolist()}) > 1


def test_answers_follow_mask_and_weights(vqa):
    before = speed_up(vqa).generate(QUESTIONS, IMAGES, MASK, max_length=9)
    assert not torch.equal(before, vqa.generate(QUESTIONS, IMAGES, max_length=9))
    with torch.no_grad():
        vqa.text_encoder.encoder.layer[1].output.dense.weight.mul_(3)
    after = vqa.generate(QUESTIONS, IMAGES, MASK, max_length=9)
    assert not torch.equal(before, after)
    assert_same(after, own_generate(vqa, QUESTIONS, IMAGES, MASK, max_length=9))
    with pytest.raises(ValueError, match="interpolate_pos_encoding=True; expected images of the size"):
        vqa.generate(QUESTIONS, IMAGES, MASK, interpolate_pos_encoding=True)


def test_defaults_of_the_model_hold(model):
    model.text_decoder.generation_config.num_beams = 4
    expected = own_generate(model, IMAGES, PROMPTS.clone(), max_length=11)
    assert not torch.equal(expected, own_generate(model, IMAGES, PROMPTS.clone(), max_length=11, num_beams=1))
    assert_same(speed_up(model).generate(IMAGES, PROMPTS, max_length=11), expected)


def test_shorter_prompts_give_what_they_give_alone(model):
    speed_up(model)
    short = torch.tensor([[101, 150, 102, 0]])
    ids = model.generate(IMAGES[:2], torch.cat([PROMPT[None], short]), max_length=12, num_beams=3)
    for row, prompt in enumerate((PROMPT[None], short[:, :3])):
        assert_same(ids[row : row + 1], own_generate(model, IMAGES[row : row + 1], prompt, max_length=12, num_beams=3))


def test_sampling_repeats_and_differs(model):
    speed_up(model)
    options = dict(do_sample=True, top_p=0.9, top_k=0, temperature=1.5, num_return_sequences=2, max_length=12)
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(model.generate(IMAGES, **options))
    assert runs[0].shape[0] == 2 * len(IMAGES)
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_weights_are_shared(model):
    flags = [index % 2 == 0 for index, _ in enumerate(model.parameters())]
    for parameter, flag in zip(model.parameters(), flags, strict=True):
        parameter.requires_grad_(flag)
    names = list(model.state_dict())
    before = speed_up(model).generate(IMAGES, max_length=12)
    assert list(model.state_dict()) == names
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    changed = own_generate(model, IMAGES, max_length=12)
    assert not torch.equal(before, changed)
    assert_same(model.generate(IMAGES, max_length=12), changed)
    assert torch.equal(twin.generate(IMAGES, max_length=12), before)
    model.to(torch.float64)
    assert_same(model.generate(IMAGES.double(), max_length=12), own_generate(model, IMAGES.double(), max_length=12))


def test_replaced_weights_count_and_adapters_are_refused(model):
    before = speed_up(model).generate(IMAGES, max_length=12)
    torch.manual_seed(0)
    state = {name: tensor + torch.randn_like(tensor) * 0.1 for name, tensor in model.state_dict().items()
             if tensor.is_floating_point()}  # fmt: skip
    model.load_state_dict(state, strict=False, assign=True)
    expected = own_generate(model, IMAGES, max_length=12)
    assert not torch.equal(before, expected)
    assert_same(model.generate(IMAGES, max_length=12), expected)
    model.text_decoder.bert.encoder.layer[0].output.adapter = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"model differs from BLIP in 'text_decoder\.bert\.encoder\.layer\.0\.output"):
        model.generate(IMAGES)


def test_saved_and_put_back(model, tmp_path):
    expected = speed_up(model).generate(IMAGES, max_length=12)
    model.save_pretrained(tmp_path / "saved")
    again = BlipForConditionalGeneration.from_pretrained(tmp_path / "saved").eval()
    assert_same(expected, again.generate(IMAGES, max_length=12))
    del model.generate
    assert model.generate.__func__ is BlipForConditionalGeneration.generate


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(no_repeat_ngram_size=2), "no_repeat_ngram_size=2 is nothing that blip_fast generates with"),
        (dict(position_ids=PROMPT), "position_ids=tensor.* is nothing"),
        (dict(length_penalty=0.5), r"length_penalty=0\.5 is nothing"),
        (dict(return_dict_in_generate=True), "return_dict_in_generate=True is nothing"),
        (dict(num_beams=3, do_sample=True), "num_beams=3 with do_sample=True; expected one of the two"),
        (dict(num_beams=0), "num_beams=0; expected a number from 1"),
        (dict(interpolate_pos_encoding=True), "interpolate_pos_encoding=True; expected images of the size"),
        (dict(input_ids=PROMPT), "are no prompts padded on the right"),
        (dict(input_ids=PROMPTS[:, :1]), "are no prompts padded on the right"),
        (dict(input_ids=PROMPTS, attention_mask=PROMPTS != 101), "are no prompts padded on the right"),
    ],
)
def test_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        speed_up(model).generate(IMAGES, **options)


def test_other_models_are_refused(model):
    config = type(model.config)(**hf_config(captioner().config, "itm"))
    with pytest.raises(
        TypeError, match="model is a BlipForImageTextRetrieval; expected a BlipForConditionalGeneration or"
    ):
        speed_up(BlipForImageTextRetrieval(config))
    model.text_decoder.bert.encoder.layer[1].output.adapter = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"model differs from BLIP in 'text_decoder\.bert\.encoder\.layer\.1\.output"):
        speed_up(model)
