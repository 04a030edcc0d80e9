"""Scripts written for the published code: names, arguments and results of its ``models`` package."""

from __future__ import annotations

import importlib
import inspect
import itertools
import json
import sys

import pytest
import torch

from blip_fast import models
from blip_fast.config import BlipConfig
from blip_fast.integrations import patch_published, published
from blip_fast.reference.retrieval import BlipRetrieval as ReferenceRetrieval
from tests import golden

VIT = dict(vit_width=32, vit_depth=2, vit_heads=2, vit_patch=8)
TEXT = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=30522)
NO_DROPOUT = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
CAPTIONS = ["a picture of a red bird", "a picture of two dogs on the grass"]
QUESTIONS = ["what is it?", "how many dogs are on the grass?"]


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    """Of a small model: an image encoder in place of ViT-B, and its own med_config."""
    monkeypatch.setattr(BlipConfig, "base", classmethod(lambda cls, **fields: cls(**(VIT | fields))))
    file = tmp_path / "med_config.json"
    file.write_text(json.dumps(TEXT | NO_DROPOUT))
    torch.manual_seed(0)
    return dict(med_config=str(file), image_size=16, vit="base")


@pytest.fixture
def patched():
    """What `patch_published` registers, gone again afterwards."""
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "models"}
    for name in before:
        del sys.modules[name]
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "models"]:
        del sys.modules[name]
    sys.modules.update(before)


def same_model(model_class, model):
    """Ours with the weights of a published one."""
    ours = model_class(model.config)
    ours.load_state_dict(model.state_dict())
    return ours.train(model.training)


def test_imports_give_our_models_under_the_published_names(patched):
    patch_published()
    patch_published()
    for module, factories in published.FACTORIES.items():
        for factory in factories:
            assert getattr(importlib.import_module(f"models.{module}"), factory.__name__) is factory
    with pytest.raises(ModuleNotFoundError, match=r"models\.med"):
        importlib.import_module("models.med")


def test_another_package_of_that_name_is_not_replaced(patched, tmp_path, monkeypatch):
    (tmp_path / "models.py").write_text("own = 1")
    monkeypatch.syspath_prepend(tmp_path)
    own = importlib.import_module("models")
    with pytest.raises(
        RuntimeError, match=r"another package 'models' is imported already; expected patch_published\(\)"
    ):
        patch_published()
    assert sys.modules["models"] is own


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("blip_decoder", "decoder"),
        ("blip_feature_extractor", "base_feature_extractor"),
        ("blip_itm", "itm"),
        ("blip_vqa", "vqa"),
        ("blip_nlvr", "nlvr"),
        ("blip_retrieval", "retrieval"),
    ],
)
def test_parameters_are_the_published_ones(name, case):
    stored = json.loads((golden.FOLDER / f"statedict_{case}_base.json").read_text())
    with torch.device("meta"):
        model = getattr(published, name)(image_size=stored["image_size"])
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert shapes == {key: entry["shape"] for key, entry in stored["state_dict"].items()}
    assert model.training


def test_defaults_are_the_published_ones():
    sizes = {}
    for factory in itertools.chain(*published.FACTORIES.values()):
        defaults = {name: part.default for name, part in inspect.signature(factory).parameters.items()}
        sizes[factory.__name__] = defaults.get("image_size")
        assert defaults.get("queue_size", 57600) == 57600
        assert defaults.get("momentum", 0.995) == 0.995
        assert defaults.get("embed_dim", 256) == 256
    assert sizes == {
        "blip_decoder": 384,
        "blip_feature_extractor": 224,
        "init_tokenizer": None,
        "blip_itm": 384,
        "blip_vqa": 480,
        "blip_nlvr": 480,
        "blip_retrieval": 384,
        "blip_pretrain": 224,
    }
    generate = inspect.signature(published.Captioner.generate).parameters.values()
    expected = dict(sample=False, num_beams=3, max_length=30, min_length=10, top_p=0.9, repetition_penalty=1.0)
    assert {part.name: part.default for part in generate if part.name not in ("self", "image")} == expected
    assert inspect.signature(published.VQA.forward).parameters["k_test"].default == 128


def test_captions(arguments):
    model = published.blip_decoder(prompt="a photo of ", **arguments)
    model.text_decoder.cls.predictions.bias.data[2000] = 0.5  # a word that is written again and again
    ours = same_model(models.BlipCaptioner, model)
    captions = ["a photo of a red bird", "a photo of two dogs"]
    expected = ours(IMAGES, ["a red bird", "two dogs"], prompt="a photo of ").loss
    torch.testing.assert_close(model(IMAGES, captions), expected)
    assert model.generate(IMAGES) == ours.generate(IMAGES, "a photo of ", 3, 30, 10)
    beams = dict(num_beams=2, max_length=12, min_length=6)
    penalised = model.generate(IMAGES, **beams, repetition_penalty=9.0)
    assert penalised == ours.generate(IMAGES, "a photo of ", **beams, repetition_penalty=9.0)
    assert penalised != model.generate(IMAGES, **beams)
    torch.manual_seed(3)
    drawn = model.generate(IMAGES, sample=True, top_p=0.8, max_length=12, min_length=6, repetition_penalty=5.0)
    torch.manual_seed(3)
    sampling = dict(do_sample=True, top_p=0.8, max_length=12, min_length=6, repetition_penalty=1.1)
    assert drawn == ours.generate(IMAGES, "a photo of ", **sampling)


def test_features(arguments):
    model = published.blip_feature_extractor(**arguments).eval()
    ours = same_model(models.BlipFeatureExtractor, model)
    assert torch.equal(model(IMAGES, CAPTIONS, mode="image"), ours.image_features(IMAGES))
    assert torch.equal(model(IMAGES, CAPTIONS, mode="text"), ours.text_features(CAPTIONS))
    assert torch.equal(model(IMAGES, CAPTIONS, mode="multimodal"), ours.multimodal_features(IMAGES, CAPTIONS))
    one = model(IMAGES[:1], CAPTIONS[0], mode="multimodal")[0, 0]
    torch.testing.assert_close(one, ours.multimodal_features(IMAGES, CAPTIONS)[0, 0])
    with pytest.raises(ValueError, match="mode='video'; expected 'image', 'text' or 'multimodal'"):
        model(IMAGES, CAPTIONS, mode="video")


def test_matching(arguments):
    model = published.blip_itm(embed_dim=24, **arguments).eval()
    ours = same_model(models.BlipITM, model)
    assert torch.equal(model(IMAGES, CAPTIONS), ours.itm(IMAGES, CAPTIONS))
    assert torch.equal(model(IMAGES, CAPTIONS, match_head="itc"), ours.itc(IMAGES, CAPTIONS))
    assert model(IMAGES[:1], CAPTIONS[0], match_head="itm").shape == (1, 2)
    assert model.vision_proj.out_features == 24
    with pytest.raises(ValueError, match="match_head='lm'; expected 'itm' or 'itc'"):
        model(IMAGES, CAPTIONS, match_head="lm")


def test_questions(arguments):
    model = published.blip_vqa(**arguments)
    assert model.config.drop_path == 0.1
    model.eval()
    ours = same_model(models.BlipVQA, model)
    answers, counts, weights = ["yes", "two", "a lot of dogs"], [1, 2], torch.tensor([1.0, 0.4, 0.6])
    expected = ours(IMAGES, QUESTIONS, None, answers, None, counts, weights).loss
    assert torch.equal(model(IMAGES, QUESTIONS, answers, n=counts, weights=weights, train=True), expected)
    assert model(IMAGES, QUESTIONS, train=False, inference="generate") == ours.answer(IMAGES, QUESTIONS)
    assert model(IMAGES[:1], QUESTIONS[0], train=False, inference="generate") == ours.answer(IMAGES[:1], QUESTIONS[:1])
    candidates = model.tokenizer(answers, padding="longest", return_tensors="pt")
    candidates.input_ids[:, 0] = model.tokenizer.bos_token_id
    best = model(IMAGES, QUESTIONS, candidates, train=False, inference="rank", k_test=2)
    assert [answers[index] for index in best] == ours.rank(IMAGES, QUESTIONS, answers, k=2)
    for given, message in (
        (dict(answer=answers, n=counts), "answer, n or weights is missing"),
        (dict(train=True), "answer, n or weights is missing; expected all three where train=True"),
        (dict(train=False), "answer is missing; expected the candidates' tokens for inference='rank'"),
        (dict(train=False, inference="guess"), "inference='guess'; expected 'rank' or 'generate'"),
    ):
        with pytest.raises(ValueError, match=message):
            model(IMAGES, QUESTIONS, **given)


def test_two_images(arguments):
    model = published.blip_nlvr(**arguments).eval()
    ours = same_model(models.BlipNLVR, model)
    second, targets = IMAGES.flip(3), torch.tensor([1, 0])
    expected = ours(torch.stack([IMAGES, second], 1), CAPTIONS, None, targets)
    both = torch.cat([IMAGES, second])
    torch.testing.assert_close(model(both, CAPTIONS, targets), expected.loss)
    torch.testing.assert_close(model(both, CAPTIONS, targets, train=False), expected.logits)


def test_retrieval(arguments):
    model = published.blip_retrieval(queue_size=6, momentum=0.9, negative_all_rank=True, **arguments)
    assert (model.config.momentum, model.negative_all_rank) == (0.9, True)
    ours = same_model(models.BlipRetrieval, model)
    idx = torch.tensor([[7], [8]])
    torch.manual_seed(4)
    losses = model(IMAGES, CAPTIONS, alpha=0.4, idx=idx)
    torch.manual_seed(4)
    expected = ours(IMAGES, CAPTIONS, None, idx[:, 0], 0.4)
    torch.testing.assert_close(losses, (expected.loss_itc, expected.loss_itm))
    assert torch.equal(model.idx_queue, ours.idx_queue)


def test_the_text_encoder_of_retrieval_is_called_as_published(arguments):
    model = published.blip_retrieval(queue_size=6, **arguments).eval()
    plain = same_model(ReferenceRetrieval, model)
    tokens = model.tokenizer(CAPTIONS, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
    tokens.input_ids[:, 0] = model.tokenizer.enc_token_id
    ids, mask = tokens.input_ids, tokens.attention_mask
    text = model.text_encoder(ids, attention_mask=mask, mode="text").last_hidden_state
    assert torch.equal(text, plain.text_encoder(ids, mask, mode="text"))
    states = model.visual_encoder(IMAGES)
    atts = torch.ones(states.shape[:-1], dtype=torch.long)
    both = model.text_encoder(
        ids, attention_mask=mask, encoder_hidden_states=states, encoder_attention_mask=atts, return_dict=True
    )
    assert torch.equal(both.last_hidden_state, plain.text_encoder(ids, mask, states, atts))


def test_pretraining_starts_from_a_vit_and_bert(arguments, monkeypatch):
    loaded = []
    monkeypatch.setattr(published, "load_vit", lambda model, source: loaded.append(source))
    monkeypatch.setattr(published, "load_bert", lambda model, source: loaded.append(source))
    model = published.blip_pretrain(queue_size=4, **arguments)
    assert loaded == [published.VIT_BASE, published.BERT_BASE]
    ours = same_model(models.BlipPretrain, model)
    torch.manual_seed(4)
    losses = model(IMAGES, CAPTIONS, alpha=0.4)
    torch.manual_seed(4)
    expected = ours(IMAGES, CAPTIONS, alpha=0.4)
    torch.testing.assert_close(losses, (expected.loss_itc, expected.loss_itm, expected.loss_lm))
    sum(losses).backward()
    assert model.text_decoder.bert.encoder.layer[1].attention.self.query.weight.grad is not None


def test_a_checkpoint_is_loaded(arguments, tmp_path):
    trained = published.blip_decoder(**arguments).eval()
    torch.save({"model": trained.state_dict()}, tmp_path / "model_base.pth")
    model = published.blip_decoder(pretrained=str(tmp_path / "model_base.pth"), **arguments)
    assert model.training
    assert model.eval().generate(IMAGES) == trained.generate(IMAGES)
    larger = published.blip_decoder(str(tmp_path / "model_base.pth"), **(arguments | dict(image_size=24)))
    assert larger.visual_encoder.pos_embed.shape[1] == 10
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth"):
        published.blip_decoder(pretrained=str(tmp_path / "nothing.pth"), **arguments)
    with pytest.raises(ValueError, match="vit='huge'; expected 'base' or 'large'"):
        published.blip_decoder(**(arguments | dict(vit="huge")))


def test_med_config_of_the_working_folder(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert published.blip_decoder(image_size=16).config.text_layers == 12
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "med_config.json").write_text(json.dumps(TEXT))
    assert published.blip_decoder(image_size=16).config.text_layers == 2
    (tmp_path / "configs" / "bert_config.json").write_text(json.dumps(TEXT | dict(num_hidden_layers=1)))
    for name in ("load_vit", "load_bert"):
        monkeypatch.setattr(published, name, lambda model, source: None)
    assert published.blip_pretrain(image_size=16, queue_size=4).config.text_layers == 1
    with pytest.raises(FileNotFoundError, match=r"other\.json"):
        published.blip_decoder(med_config="other.json", image_size=16)
    for content, message in (("{", "med_config='other.json' is no JSON"), ("[]", "holds a list; expected a mapping")):
        (tmp_path / "other.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            published.blip_decoder(med_config="other.json", image_size=16)


def test_blocks_are_computed_again_where_asked(arguments):
    model = published.blip_decoder(vit_grad_ckpt=True, vit_ckpt_layer=1, **arguments)
    assert [block.recompute for block in model.visual_encoder.blocks] == [None, "full"]
