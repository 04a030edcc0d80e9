"""Texts as strings: tokenised as published for each head, with the results of the ids they stand for."""

from __future__ import annotations

import pytest
import torch

from blip_fast import models
from blip_fast.data.tokens import PROMPT, dialogue_text, tokenize
from blip_fast.models.strings import padded_texts
from tests.models.common import pair

pytest.importorskip("blip_fast.data.tokenizer", exc_type=ImportError)

CAPTIONS = ["a cat on a mat", "two dogs that run along a beach", "a red bus"]
ANSWERS = ["yes", "two of them", "no"]
LONG = " ".join(["word"] * 60)
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def build(name: str, **overrides):
    model_class = getattr(models, name)
    return pair(model_class, model_class, vocab_size=30524, text_layers=1, vit_depth=1, **overrides)[0].eval()


@pytest.mark.parametrize(
    ("use", "width", "cut"),
    [
        ("pretrain", 30, 30),
        ("retrieval", 35, 35),
        ("itm", 35, 35),
        ("caption", 7, 40),
        ("question", 7, 35),
        ("answer", 7, 62),
        ("nlvr", 7, 62),
        ("features", 7, 62),
        ("dialogue", 7, 62),
    ],
)
def test_lengths(use, width, cut):
    ids, mask = tokenize(["a cat on a mat", "a dog"], use)
    assert ids.shape == mask.shape == (2, width)
    assert ids[1, :5].tolist() == [101, 1037, 3899, 102, 0]
    assert mask.sum(1).tolist() == [7, 4]
    ids, mask = tokenize([LONG], use)
    assert mask.sum() == cut
    assert ids[0, 0] == 101
    assert ids[0, cut - 1] == 102


def test_dialogue():
    ids, _ = tokenize([dialogue_text(["is it a cat?", "yes", "is it red?"])], "dialogue")
    assert ids[0].tolist() == [101, 2003, 2009, 1037, 4937, 1029, 102, 2748, 102, 2003, 2009, 2417, 1029, 102]


def test_pretraining_and_retrieval():
    indices = torch.tensor([1, 2, 0])
    for name, use in (("BlipPretrain", "pretrain"), ("BlipRetrieval", "retrieval")):
        extra = {"ids": torch.arange(3)} if use == "retrieval" else {}
        losses = [
            build(name)(IMAGES, *inputs, alpha=0.4, negatives=(indices, indices), **extra).loss
            for inputs in ((CAPTIONS, None), tokenize(CAPTIONS, use))
        ]
        assert torch.equal(*losses)
    model = build("BlipRetrieval")
    assert torch.equal(model.encode_texts(CAPTIONS), model.encode_texts(*tokenize(CAPTIONS, "retrieval")))


def test_captions_get_the_prompt():
    model = build("BlipCaptioner")
    prompted = tokenize([PROMPT + caption for caption in CAPTIONS], "caption")
    assert torch.equal(model(IMAGES, CAPTIONS).loss, model(IMAGES, *prompted, prompt_length=4).loss)
    bare = tokenize(CAPTIONS, "caption")
    assert torch.equal(model(IMAGES, CAPTIONS, prompt="").loss, model(IMAGES, *bare, prompt_length=1).loss)


def test_questions():
    counts, weights = [1, 1, 1], torch.ones(3)
    model = build("BlipVQA")
    loss = model(IMAGES, CAPTIONS, None, ANSWERS, None, counts, weights).loss
    tokens = (*tokenize(CAPTIONS, "question"), *tokenize(ANSWERS, "answer"))
    assert torch.equal(loss, model(IMAGES, *tokens, counts, weights).loss)
    video = build("BlipVideoQA")
    frames = IMAGES[:, None].expand(-1, 2, -1, -1, -1)
    assert set(video.rank(frames, CAPTIONS, ANSWERS)) <= set(ANSWERS)
    assert len(video.answer(frames, CAPTIONS, num_beams=1, max_length=4)) == 3


def test_other_heads():
    model = build("BlipNLVR")
    pairs, tokens = torch.stack([IMAGES, IMAGES], 1), tokenize(CAPTIONS, "nlvr")
    assert torch.equal(model(pairs, CAPTIONS).logits, model(pairs, *tokens).logits)

    model, tokens = build("BlipITM"), tokenize(CAPTIONS, "itm")
    assert torch.equal(model.itm(IMAGES, CAPTIONS), model.itm(IMAGES, *tokens))
    assert torch.equal(model.itc(IMAGES, CAPTIONS), model.itc(IMAGES, *tokens))

    model, tokens = build("BlipFeatureExtractor"), tokenize(CAPTIONS, "features")
    assert torch.equal(model.text_features(CAPTIONS), model.text_features(*tokens))
    assert torch.equal(model.multimodal_features(IMAGES, CAPTIONS), model.multimodal_features(IMAGES, *tokens))


def test_dialogues():
    model = build("BlipVisDial")
    dialogues = [["is it a cat?"], ["how many?", "two", "do they run?"], ["a bus?"]]
    pools = [ANSWERS, ANSWERS[::-1], ANSWERS]
    ranking = model.rank_ids(IMAGES, CAPTIONS, None, dialogues, None, pools, None)
    answer_tokens = (tensor.unflatten(0, (3, 3)) for tensor in tokenize([a for pool in pools for a in pool], "answer"))
    texts = [dialogue_text(utterances) for utterances in dialogues]
    tokens = (*tokenize(CAPTIONS, "caption"), *tokenize(texts, "dialogue"), *answer_tokens)
    assert torch.equal(ranking.scores, model.rank_ids(IMAGES, *tokens).scores)
    with pytest.raises(ValueError, match=r"answer_ids has lists of \[3, 1, 3\] answers; expected 3 lists of equal"):
        model.rank_ids(IMAGES, CAPTIONS, None, dialogues, None, [ANSWERS, ["no"], ANSWERS], None)


def test_refused():
    model = build("BlipITM")
    with pytest.raises(ValueError, match="attention_mask is given for texts that are strings"):
        model.itm(IMAGES, CAPTIONS, torch.ones(3, 35))
    ids = torch.ones(3, 5, dtype=torch.long, device="meta")
    with pytest.raises(ValueError, match="texts are on meta; expected cpu, where images and model are"):
        model.itm(IMAGES, ids, torch.ones(3, 5))
    with pytest.raises(TypeError, match="texts is 'a cat'; expected a list of strings"):
        model.itm(IMAGES, "a cat")
    with pytest.raises(TypeError, match="expected a list of strings"):
        build("BlipCaptioner")(IMAGES, "a cat")
    with pytest.raises(ValueError, match=r"texts has 'half \\ud83d'; expected text without halves"):
        build("BlipCaptioner").generate(IMAGES, "half \ud83d")
    with pytest.raises(ValueError, match="texts is empty; expected at least one string"):
        tokenize([], "itm")
    small = build("BlipITM")
    small.config = small.config.from_dict(small.config.to_dict() | {"vocab_size": 300})
    with pytest.raises(ValueError, match="vocab_size=300 and no tokenizer; strings are tokenised for models with"):
        padded_texts(CAPTIONS, None, "itm", small, torch.device("cpu"))
