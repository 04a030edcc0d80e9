"""Folders of transformers' BLIP classes: read and written with equal outputs on both sides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from blip_fast.checkpoints import PretrainedModel
from blip_fast.checkpoints.heads import HEADS
from blip_fast.checkpoints.huggingface import hf_config, hf_name, published_name
from blip_fast.checkpoints.loading import LoadReport, fit
from blip_fast.config import BlipConfig
from blip_fast.reference.decoder import lm_loss
from tests.checkpoints.common import CLASSES, assert_same_state, build, perturb, small_config, small_tokenizer

WITH_CLASS = [head.name for head in HEADS.values() if head.hf_class]
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([[101, 110, 111, 112, 113, 102], [101, 114, 200, 210, 290, 102]])
MASK = torch.ones_like(IDS)


def hf_model(head: str, **config: Any) -> Any:
    """A transformers model with random weights."""
    settings = hf_config(small_config(vit_layer_norm_eps=1e-5, text_heads=4, **config), head)
    torch.manual_seed(1)
    return perturb(getattr(transformers, settings["architectures"][0])(transformers.BlipConfig(**settings)))


@torch.no_grad()
def hf_outputs(model: Any, head: str) -> list[Tensor]:
    if head == "caption":
        out = model(pixel_values=IMAGES, input_ids=IDS, attention_mask=MASK, labels=IDS)
        prompt = IDS[:, :5].clone()  # it writes into the prompt and drops its last token
        return [out.logits, out.loss, model.generate(IMAGES, input_ids=prompt, max_length=9)]
    if head == "itm":
        arguments = dict(pixel_values=IMAGES, input_ids=IDS, attention_mask=MASK)
        return [model(**arguments, use_itm_head=choice).itm_score for choice in (True, False)]
    loss = model(pixel_values=IMAGES, input_ids=IDS, attention_mask=MASK, labels=IDS.flip(0)).loss
    return [loss, model.generate(input_ids=IDS, pixel_values=IMAGES, attention_mask=MASK, max_length=9)]


@torch.no_grad()
def own_outputs(model: Any, head: str) -> list[Tensor]:
    """The same with transformers' deviations from the published code: [CLS] stays, nothing of a prompt is masked."""
    smoothing = model.config.label_smoothing
    if head == "caption":
        logits = model.text_decoder(IDS, MASK, model.visual_encoder(IMAGES))
        ids = model.generate_ids(IMAGES, IDS[:, :4], num_beams=1, max_length=9, min_length=0)
        return [logits, lm_loss(logits, IDS, smoothing), ids]
    if head == "itm":
        return [model.itm(IMAGES, IDS, MASK), model.itc(IMAGES, IDS, MASK)]
    states = model.text_encoder(IDS, MASK, model.visual_encoder(IMAGES))
    loss = lm_loss(model.text_decoder(IDS.flip(0), MASK, states), IDS.flip(0), smoothing)
    model.question_states = lambda *_: states
    return [loss, model.generate_ids(IMAGES, IDS, MASK, num_beams=1, max_length=9, min_length=0)]


def assert_same_outputs(hf: Any, own: PretrainedModel, head: str) -> None:
    for expected, actual in zip(hf_outputs(hf, head), own_outputs(own, head), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("head", WITH_CLASS)
def test_reads_what_transformers_writes(head: str, weights: str, tmp_path: Path) -> None:
    hf = hf_model(head)
    hf.save_pretrained(tmp_path)
    if weights == "pytorch_model.bin":
        (tmp_path / "model.safetensors").unlink()
        torch.save(hf.state_dict(), tmp_path / weights)
    own = CLASSES[head].from_pretrained(tmp_path)
    assert own.load_report == LoadReport()
    assert (own.config.vit_layer_norm_eps, own.config.text_heads, own.config.label_smoothing) == (1e-5, 4, 0.1)
    assert_same_outputs(hf, own, head)


@pytest.mark.parametrize("head", WITH_CLASS)
def test_transformers_reads_what_is_written(head: str, tmp_path: Path) -> None:
    own = build(head, text_heads=2)
    own.save_pretrained(tmp_path, "hf")
    hf_class = getattr(transformers, HEADS[head].hf_class)
    hf, report = hf_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert_same_outputs(hf.eval(), own, head)
    again = CLASSES[head].from_pretrained(tmp_path, queue_size=own.config.queue_size, embed_dim=own.config.embed_dim)
    assert_same_state(again, own)
    assert again.config == own.config


@pytest.mark.parametrize("head", WITH_CLASS)
def test_full_size_names(head: str) -> None:
    """Base models of both libraries have the same tensors, but for position numbers."""
    config = BlipConfig.base(image_size=384)
    with torch.device("meta"):
        hf = getattr(transformers, HEADS[head].hf_class)(transformers.BlipConfig(**hf_config(config, head)))
        own = CLASSES[head](config)
    state = {published_name(name): tensor for name, tensor in hf.state_dict().items()}
    assert fit(own, state)[1] == LoadReport()
    assert [hf_name(name) for name in state] == list(hf.state_dict())


def test_contrastive_model_gives_features(tmp_path: Path) -> None:
    """BlipModel's encoders are the feature extractor; its projections and pooling have no place in BLIP."""
    settings = hf_config(small_config(), "itm")
    torch.manual_seed(2)
    hf = perturb(transformers.BlipModel(transformers.BlipConfig(**settings)))
    hf.save_pretrained(tmp_path)
    own = CLASSES["features"].from_pretrained(tmp_path)
    unplaced = ("text_encoder.pooler", "visual_projection", "text_projection", "logit_scale")
    assert not own.load_report.initial
    assert own.load_report.unexpected
    assert all(name.startswith(unplaced) for name in own.load_report.unexpected)
    with torch.no_grad():
        expected = hf.text_model(IDS, MASK, encoder_hidden_states=hf.vision_model(IMAGES).last_hidden_state)[0]
        actual = own.text_encoder(IDS, MASK, own.image_features(IMAGES))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="checkpoint of BlipFeatureExtractor and does not fit BlipITM"):
        CLASSES["itm"].from_pretrained(tmp_path)


def test_processor_loads(tmp_path: Path) -> None:
    build("caption").save_pretrained(tmp_path, "hf", tokenizer=small_tokenizer())
    processor = transformers.BlipProcessor.from_pretrained(tmp_path)
    inputs = processor(images=torch.zeros(3, 50, 40, dtype=torch.uint8), text="a picture of cat", return_tensors="pt")
    assert inputs["input_ids"].tolist() == [[101, 110, 111, 112, 113, 102]]
    assert inputs["pixel_values"].shape == (1, 3, 32, 32)
    assert processor.tokenizer.bos_token_id == 298


def test_processor_of_the_published_vocabulary(tmp_path: Path) -> None:
    pytest.importorskip("blip_fast.data.tokenizer")
    build("caption", vocab_size=30524).save_pretrained(tmp_path, "hf")
    processor = transformers.BlipProcessor.from_pretrained(tmp_path)
    assert processor(text="a picture of a cat").input_ids == [101, 1037, 3861, 1997, 1037, 4937, 102]
    assert processor.tokenizer.bos_token_id == 30522


def test_half_precision_stays(tmp_path: Path) -> None:
    build("itm").bfloat16().save_pretrained(tmp_path, "hf")
    hf = transformers.BlipForImageTextRetrieval.from_pretrained(tmp_path, dtype="auto")
    assert hf.itm_head.weight.dtype == torch.bfloat16


def test_refused(tmp_path: Path) -> None:
    for head in ("pretrain", "retrieval", "nlvr", "features"):
        name = HEADS[head].class_name
        with pytest.raises(ValueError, match=f"no class for {name}; format='hf' is for BlipVQA, BlipCaptioner, BlipI"):
            build(head).save_pretrained(tmp_path / "model", "hf")
    with pytest.raises(ValueError, match=r"vit_width=128 differs from text_width=64; transformers cannot build"):
        build("vqa", vit_width=128, vit_heads=2).save_pretrained(tmp_path / "model", "hf")
    assert not list(tmp_path.iterdir())

    hf_model("itm").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="checkpoint of BlipITM and does not fit BlipVQA"):
        CLASSES["vqa"].from_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["text_config"]["bos_token_id"] = 5
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="text_config has bos_token_id=5; BLIP needs 298"):
        CLASSES["itm"].from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "model.safetensors.index.json")
    settings["text_config"]["bos_token_id"] = 298
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(FileNotFoundError, match="has weights in several files"):
        CLASSES["itm"].from_pretrained(tmp_path)
