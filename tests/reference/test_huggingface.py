"""The reference models with the weights of transformers' BLIP classes give that library's numbers."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from blip_fast.config import BlipConfig
from blip_fast.reference import BlipCaptioner, BlipITM, BlipVQA
from blip_fast.reference.decoder import DecodingSession, lm_loss
from blip_fast.reference.generation import Limits, beam_search, single_path
from tests import golden

RENAMED = (
    (r"^vision_model\.embeddings\.class_embedding$", "visual_encoder.cls_token"),
    (r"^vision_model\.embeddings\.position_embedding$", "visual_encoder.pos_embed"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual_encoder.patch_embed.proj."),
    (r"^vision_model\.post_layernorm\.", "visual_encoder.norm."),
    (r"^vision_model\.encoder\.layers\.", "visual_encoder.blocks."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"\.self_attn\.qkv\.", ".attn.qkv."),
    (r"\.self_attn\.projection\.", ".attn.proj."),
)


def published_name(name: str) -> str:
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def build(model_class: type[nn.Module], case: str) -> nn.Module:
    golden.require(case)
    _, sidecar = golden.load(case)
    text, vision = sidecar["text_config"], sidecar["vision_config"]
    config = BlipConfig(
        text_layers=text["num_hidden_layers"],
        text_width=text["hidden_size"],
        text_heads=text["num_attention_heads"],
        text_intermediate=text["intermediate_size"],
        vocab_size=text["vocab_size"],
        max_position_embeddings=text["max_position_embeddings"],
        vit_width=vision["hidden_size"],
        vit_depth=vision["num_hidden_layers"],
        vit_heads=vision["num_attention_heads"],
        vit_patch=vision["patch_size"],
        image_size=vision["image_size"],
        embed_dim=sidecar["image_text_hidden_size"],
        vit_layer_norm_eps=vision["layer_norm_eps"],
        label_smoothing=text["label_smoothing"],
        hidden_dropout=0.0,
        attention_dropout=0.0,
    )
    model = model_class(config)
    state = {published_name(name): value for name, value in golden.initial_state(case).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("position_ids") for name in missing)
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
