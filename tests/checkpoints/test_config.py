"""Configurations of the published programs and of transformers."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import BlipConfig as TransformersConfig

from blip_fast.checkpoints.huggingface import hf_config
from blip_fast.config import BlipConfig

MED_CONFIG = {
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "vocab_size": 30524,
    "encoder_width": 768,
    "add_cross_attention": True,
}


@pytest.mark.parametrize(
    ("settings", "head", "expected"),
    [
        ({"vit": "base", "image_size": 224, "queue_size": 57600, "alpha": 0.4}, "pretrain", BlipConfig.base()),
        ({"vit": "large", "image_size": 384, "k_test": 256}, "retrieval", BlipConfig.large(image_size=384)),
        ({"vit": "base", "image_size": 480}, "vqa", BlipConfig.base(image_size=480, drop_path=0.1)),
        ({"image_size": 384}, "nlvr", BlipConfig.base(image_size=384, drop_path=0.1)),
        ({"image_size": 384, "vit": "base"}, None, BlipConfig.base(image_size=384)),
    ],
)
def test_published(settings: dict[str, Any], head: str | None, expected: BlipConfig) -> None:
    assert BlipConfig.from_published(settings, MED_CONFIG, head) == expected
    assert BlipConfig.from_published(settings, None, head) == expected
    assert BlipConfig.from_published(settings, {**MED_CONFIG, "vocab_size": 30522}, head) == expected


def test_published_overrides_and_refusal() -> None:
    config = BlipConfig.from_published({"vit": "large"}, {"num_hidden_layers": 6}, "vqa", drop_path=0.0, queue_size=64)
    assert config == BlipConfig.large(text_layers=6, drop_path=0.0, queue_size=64)
    with pytest.raises(ValueError, match="vit='huge'; expected 'base' or 'large'"):
        BlipConfig.from_published({"vit": "huge"})


def test_missing_entries_mean_what_transformers_means() -> None:
    theirs = TransformersConfig()
    full = BlipConfig.from_hf(theirs.to_dict())
    for sparse in ({}, {"text_config": None, "vision_config": {}}):
        assert BlipConfig.from_hf(sparse) == full
    assert (full.text_heads, full.vit_layer_norm_eps, full.label_smoothing) == (8, 1e-5, 0.0)


def test_round_trip() -> None:
    config = BlipConfig.large(image_size=384, text_heads=8, label_smoothing=0.05, drop_path=0.0)
    assert BlipConfig.from_hf(hf_config(config, "itm")) == config
    theirs = TransformersConfig(**hf_config(config, "itm"))
    assert BlipConfig.from_hf(theirs.to_dict()) == config


def test_size_pairs_and_refusals() -> None:
    assert BlipConfig.from_hf({"vision_config": {"image_size": [96, 96], "patch_size": (8, 8)}}).image_size == 96
    for config, message in (
        ({"vision_config": {"image_size": [96, 64]}}, r"image_size=\[96, 64\]; expected a square"),
        ({"text_config": {"hidden_act": "relu"}}, "text_config has hidden_act='relu'; BLIP needs 'gelu'"),
        ({"vision_config": {"hidden_act": "quick_gelu"}}, "vision_config has hidden_act='quick_gelu'"),
        ({"text_config": {"tie_word_embeddings": False}}, "tie_word_embeddings=False"),
    ):
        with pytest.raises(ValueError, match=message):
            BlipConfig.from_hf(config)


@pytest.mark.parametrize("inner", [960, 1000, 2815, 3840])
def test_every_width_of_an_mlp_comes_back(inner: int) -> None:
    hugging_face = {"vision_config": {"hidden_size": 704, "intermediate_size": inner, "num_attention_heads": 11}}
    config = BlipConfig.from_hf(hugging_face)
    assert int(config.vit_width * config.vit_mlp_ratio) == inner
    assert hf_config(config, "caption")["vision_config"]["intermediate_size"] == inner


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text_heads": "4"}, "text_heads='4'; expected a positive whole number"),
        ({"vit_depth": 0}, "vit_depth=0; expected a positive whole number"),
        ({"queue_size": 1.5}, "queue_size=1.5; expected a positive whole number"),
        ({"momentum": None}, "momentum=None; expected a number"),
        ({"text_layers": True}, "text_layers=True; expected a positive whole number"),
        ({"vit_mlp_ratio": -1}, "vit_mlp_ratio=-1; expected a number >= 0"),
        ({"momentum": float("nan")}, "momentum=nan; expected a number >= 0"),
    ],
)
def test_fields_are_numbers(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BlipConfig.from_dict(values)
