"""Weights of a timm ViT and of BERT in the places where published pre-training puts them."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, BertModel

from blip_fast.checkpoints import load_bert, load_vit
from blip_fast.reference.momentum_model import MomentumModel
from tests.checkpoints.common import build, perturb, small_config

BERT = BertConfig(
    vocab_size=298,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=32,
    max_position_embeddings=24,
)
IDS = torch.tensor([[101, 5, 6, 7, 102], [101, 8, 102, 0, 0]])


def vit(**arguments: object) -> torch.nn.Module:
    torch.manual_seed(3)
    sizes = dict(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=1, mlp_ratio=2, num_classes=5)
    return perturb(timm.models.vision_transformer.VisionTransformer(**(sizes | arguments)))


def bert(model_class: type[torch.nn.Module]) -> torch.nn.Module:
    """BERT whose token type embeddings, which BLIP leaves out, are 0."""
    torch.manual_seed(4)
    model = perturb(model_class(BERT))
    body = getattr(model, "bert", model)
    torch.nn.init.zeros_(body.embeddings.token_type_embeddings.weight)
    return model


@torch.no_grad()
@pytest.mark.parametrize("head", ["pretrain", "caption"])
def test_vit_gives_timm_features(head: str) -> None:
    source, model = vit(), build(head)
    report = load_vit(model, source.state_dict())
    assert not report.initial
    assert all(".head." in name for name in report.unexpected)
    images = torch.randn(2, 3, 32, 32)
    for name in ("visual_encoder", "visual_encoder_m")[: 2 if head == "pretrain" else 1]:
        features = getattr(model, name)(images)
        torch.testing.assert_close(features, source.forward_features(images), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_vit_base_of_timm_full_size() -> None:
    """Names and shapes of timm's ViT-B/16 are the image encoder's."""
    from blip_fast.checkpoints.loading import fit
    from blip_fast.config import BlipConfig
    from blip_fast.reference.vit import VisionTransformer

    for name, config in (("deit_base_patch16_224", BlipConfig.base()), ("vit_large_patch16_224", BlipConfig.large())):
        with torch.device("meta"):
            source, encoder = timm.create_model(name), VisionTransformer(config)
        report = fit(encoder, source.state_dict())[1]
        assert not report.initial
        assert report.unexpected == ["head.weight", "head.bias"]


def test_vit_from_a_file_at_another_size(tmp_path: Path) -> None:
    torch.save({"model": vit(img_size=48).state_dict()}, tmp_path / "deit.pth")
    model = build("itm")
    assert load_vit(model, tmp_path / "deit.pth").reshaped == ["visual_encoder.pos_embed"]
    with pytest.raises(
        ValueError, match=r"the ViT does not fit: 1 tensors .* 'visual_encoder.patch_embed.proj.weight'"
    ):
        load_vit(model, vit(patch_size=16, img_size=64).state_dict())


@torch.no_grad()
@pytest.mark.parametrize("model_class", [BertModel, BertForPreTraining])
def test_bert_gives_its_hidden_states(model_class: type[torch.nn.Module]) -> None:
    source, model = bert(model_class), build("pretrain", text_heads=4)
    load_bert(model, source.state_dict())
    mask = (IDS != 0).long()
    expected = getattr(source, "bert", source)(IDS, attention_mask=mask).last_hidden_state
    for encoder in (model.text_encoder, model.text_encoder_m):
        torch.testing.assert_close(encoder(IDS, mask, mode="text"), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_bert_in_the_decoder() -> None:
    """The decoder's self-attention and language head are BERT's; [DEC] and [ENC] keep their initial rows."""
    source, model = bert(BertForMaskedLM).state_dict(), build("pretrain")
    assert isinstance(model, MomentumModel)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = load_bert(model, source)
    state = model.state_dict()
    layer = "encoder.layer.1.attention.output.dense.weight"
    assert torch.equal(state[f"text_decoder.bert.{layer}"], source[f"bert.{layer}"])
    assert torch.equal(state["text_decoder.cls.predictions.transform.dense.bias"],
                       source["cls.predictions.transform.dense.bias"])  # fmt: skip
    bias = state["text_decoder.cls.predictions.bias"]
    assert torch.equal(bias[:298], source["cls.predictions.bias"])
    name = "text_encoder.embeddings.word_embeddings.weight"
    assert torch.equal(state[name][:298], source["bert.embeddings.word_embeddings.weight"])
    assert torch.equal(state[name][298:], before[name][298:])
    assert model.text_decoder.cls.predictions.decoder.weight is model.text_encoder.embeddings.word_embeddings.weight
    assert all(".crossattention." in name for name in report.missing)
    cross = "text_encoder.encoder.layer.0.crossattention.self.key.weight"
    assert cross in report.missing
    assert torch.equal(state[cross], before[cross])
    model.text_encoder.embeddings.LayerNorm.bias.zero_()
    assert not torch.equal(model.text_encoder_m.embeddings.LayerNorm.bias, torch.zeros(64))  # a copy of its own


def test_bert_with_old_names_from_a_file(tmp_path: Path) -> None:
    """Google's weights call scale and shift of LayerNorm gamma and beta, and carry a classifier of sentence pairs."""
    source = bert(BertForPreTraining).state_dict()
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in source.items()
    }
    torch.save(old, tmp_path / "pytorch_model.bin")
    model = build("nlvr")
    report = load_bert(model, tmp_path)
    assert not report.dropped
    assert all(".crossattention." in name for name in report.missing)
    name = "encoder.layer.1.output.LayerNorm.bias"
    assert torch.equal(model.state_dict()[f"text_encoder.{name}"], source[f"bert.{name}"])


def test_bert_of_other_sizes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the BERT does not fit: .* 'text_encoder.embeddings.word_embeddings.weight'"):
        load_bert(build("itm", vocab_size=250), bert(BertModel).state_dict())
    with pytest.raises(ValueError, match=r"the BERT does not fit: .* 'text_encoder.encoder.layer.2.attention"):
        load_bert(build("itm", text_layers=3), bert(BertModel).state_dict())
    assert small_config().vocab_size == BERT.vocab_size + 2
