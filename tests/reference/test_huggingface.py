"""The reference models with the weights of transformers' BLIP classes give that library's numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from blip_fast.checkpoints import LoadReport, load_state
from blip_fast.checkpoints.huggingface import published_name
from blip_fast.config import BlipConfig
from blip_fast.reference import BlipCaptioner, BlipITM, BlipVQA
from blip_fast.reference.decoder import DecodingSession, lm_loss
from blip_fast.reference.generation import Limits, beam_search, single_path
from tests import golden


def build(model_class: type[nn.Module], case: str) -> nn.Module:
    golden.require(case)
    _, sidecar = golden.load(case)
    model = model_class(BlipConfig.from_hf(sidecar))
    state = {published_name(name): value for name, value in golden.initial_state(case).items()}
    assert load_state(model, state) == LoadReport()
    return model.eval()


def with_pads(ids: Tensor, eos: int = 102) -> Tensor:
    """Ids (B, n) with padding 0 behind the first end token; transformers' beam search fills with the end token."""
    ended = (ids == eos).cumsum(dim=1) - (ids == eos).long() > 0
    return ids.masked_fill(ended, 0)


def same_texts(actual: Tensor, expected: Tensor) -> bool:
    """Whether ids agree up to the padding at their end."""
    expected = with_pads(expected)
    width = max(actual.shape[1], expected.shape[1])
    both = [nn.functional.pad(ids, (0, width - ids.shape[1])) for ids in (actual, expected)]
    return torch.equal(*both)


def test_caption_loss() -> None:
    model = build(BlipCaptioner, "hf_caption")
    tensors, _ = golden.load("hf_caption")
    out = model(tensors["pixel_values"], tensors["ids"], tensors["mask"], prompt_length=4)
    torch.testing.assert_close(out.loss, tensors["loss"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("run", ["greedy_prompt", "beam3_prompt", "beam3_min12", "greedy_rp11", "greedy_noprompt"])
def test_caption_ids(run: str) -> None:
    model = build(BlipCaptioner, "hf_caption")
    tensors, sidecar = golden.load("hf_caption")
    settings = {name: value for name, value in sidecar["generation_runs"][run].items() if name != "note"}
    prompt = tensors["gen_input_ids"][:, :1] if run == "greedy_noprompt" else tensors["gen_input_ids"]
    settings.setdefault("min_length", 0)
    ids = model.generate_ids(tensors["gen_pixel_values"], prompt, **settings, length_norm="generated")
    assert same_texts(ids, tensors[f"gen.{run}"])


def test_matching_and_contrastive_scores() -> None:
    model = build(BlipITM, "hf_itm")
    tensors, _ = golden.load("hf_itm")
    inputs = (tensors["pixel_values"], tensors["ids"], tensors["mask"])
    torch.testing.assert_close(model.itm(*inputs), tensors["itm_score"], rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(model.itc(*inputs), tensors["itc_score"], rtol=1e-5, atol=2e-6)


def question_states(model: BlipVQA) -> Tensor:
    """Transformers leaves [CLS] in front of the question, so the encoder is called directly."""
    tensors, _ = golden.load("hf_vqa")
    return model.text_encoder(tensors["ids"], tensors["mask"], model.visual_encoder(tensors["pixel_values"]))


def test_vqa_loss_with_and_without_question_padding() -> None:
    model = build(BlipVQA, "hf_vqa")
    tensors, _ = golden.load("hf_vqa")
    answers = (tensors["decoder_input_ids"], tensors["decoder_attention_mask"], question_states(model))
    for mask, name in ((None, "loss"), (tensors["mask"], "loss_question_padding_masked")):
        loss = lm_loss(model.text_decoder(*answers, mask), tensors["labels"], model.config.label_smoothing)
        torch.testing.assert_close(loss, tensors[name], rtol=1e-5, atol=0)


@pytest.mark.parametrize("run", ["greedy", "beam3"])
def test_vqa_ids(run: str) -> None:
    model = build(BlipVQA, "hf_vqa")
    tensors, sidecar = golden.load("hf_vqa")
    settings = sidecar["generation_runs"][run]
    beams = settings["num_beams"]
    states = question_states(model).repeat_interleave(beams, dim=0)
    session, start = DecodingSession(model.text_decoder, states), tensors["ids"].new_full((4, 1), 254)
    limits = Limits(settings["max_length"], settings.get("min_length", 0), eos_token_id=102, pad_token_id=0)
    ids = (
        single_path(session, start, limits)
        if beams == 1
        else beam_search(session, start, limits, beams, "generated")[0]
    )
    assert same_texts(ids, tensors[f"gen.{run}"])
