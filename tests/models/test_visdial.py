"""Visual dialogue: fused against reference, and both against a plain reading of what they should compute."""

from __future__ import annotations

import pytest
import torch

from blip_fast import models, reference
from blip_fast.data.packing import pack
from tests.models.common import assert_same_gradients, pair, texts

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
CAPTIONS, DIALOGUES, ANSWERS = texts(2, 7), texts(3, 12, generator=1), texts(3, 4, 5, generator=2)
IMAGE_OF_DIALOGUE = torch.tensor([1, 0, 1])
LABELS = torch.tensor([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
INPUTS = (IMAGES, *CAPTIONS, *DIALOGUES, *ANSWERS)


@pytest.mark.parametrize("vit_width", [32, 48])
def test_loss_gradients_and_ranking(vit_width, plan):
    fused, plain = pair(models.BlipVisDial, reference.BlipVisDial, vit_width=vit_width)
    outputs = [m.train()(*INPUTS, labels=LABELS, image_of_dialogue=IMAGE_OF_DIALOGUE) for m in (fused, plain)]
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(outputs[0].loss, outputs[1].loss, rtol=1e-5, atol=0)
    for output in outputs:
        output.loss.backward()
    assert_same_gradients(fused, plain)
    assert all(parameter.grad is not None for parameter in fused.parameters())

    fused.eval(), plain.eval()
    rankings = [m.rank_ids(*INPUTS, image_of_dialogue=IMAGE_OF_DIALOGUE) for m in (fused, plain)]
    torch.testing.assert_close(rankings[0].scores, rankings[1].scores, rtol=1e-5, atol=1e-5)
    assert torch.equal(rankings[0].best, rankings[1].best)
    assert rankings[0].scores.shape == (3, 4)


def test_one_answer_by_hand():
    """Text, what it looks at and the logit of one answer, without padding anywhere."""
    fused = pair(models.BlipVisDial, reference.BlipVisDial)[0].eval()
    dialogue, answer, image = 2, 3, 1
    words = DIALOGUES[0][dialogue][DIALOGUES[1][dialogue] == 1].tolist()
    words = [fused.config.enc_token_id, *words[1:]]
    words += ANSWERS[0][dialogue, answer][ANSWERS[1][dialogue, answer] == 1].tolist()[1:]
    caption = CAPTIONS[0][image][CAPTIONS[1][image] == 1][None]
    with torch.no_grad():
        seen = fused.visual_encoder(IMAGES[image : image + 1])
        seen = torch.cat([seen, fused.text_encoder(caption, torch.ones_like(caption), mode="text")], dim=1)
        text = torch.tensor([words])
        logits = fused.itm_head(fused.text_encoder(text, torch.ones_like(text), seen)[0, 0])
        out = fused(*INPUTS, image_of_dialogue=IMAGE_OF_DIALOGUE)
    torch.testing.assert_close(out.logits[dialogue, answer], logits, rtol=1e-5, atol=1e-5)
    assert out.loss is None


def test_a_pool_changes_nothing_about_its_answers():
    fused = pair(models.BlipVisDial, reference.BlipVisDial)[0].eval()
    ids, mask = ANSWERS[0][:2], ANSWERS[1][:2]
    dialogues = (DIALOGUES[0][:2], DIALOGUES[1][:2])
    scores = fused.rank_ids(IMAGES, *CAPTIONS, *dialogues, ids, mask).scores
    for answer in range(ids.shape[1]):
        alone = slice(answer, answer + 1)
        single = fused.rank_ids(IMAGES, *CAPTIONS, *dialogues, ids[:, alone], mask[:, alone]).scores
        torch.testing.assert_close(single[:, 0], scores[:, answer], rtol=1e-5, atol=1e-5)


def test_packed_inputs():
    fused = pair(models.BlipVisDial, reference.BlipVisDial)[0].eval()
    packed = (IMAGES, pack(*CAPTIONS), None, pack(*DIALOGUES), None, *ANSWERS)
    expected = fused(*INPUTS, image_of_dialogue=IMAGE_OF_DIALOGUE).logits
    torch.testing.assert_close(fused(*packed, image_of_dialogue=IMAGE_OF_DIALOGUE).logits, expected)


def test_without_a_mask_answers_are_taken_whole():
    fused = pair(models.BlipVisDial, reference.BlipVisDial)[0].eval()
    full = torch.full_like(ANSWERS[0], 120)
    expected = fused(*INPUTS[:5], full, torch.ones_like(full), image_of_dialogue=IMAGE_OF_DIALOGUE).logits
    whole = fused(*INPUTS[:5], full, None, image_of_dialogue=IMAGE_OF_DIALOGUE).logits
    torch.testing.assert_close(whole, expected)


def test_starts_from_pretraining(tmp_path):
    pretrained = pair(models.BlipPretrain, models.BlipPretrain, text_heads=1, vit_heads=1)[0]
    pretrained.save_pretrained(tmp_path / "equal.pth", "published")
    model = models.BlipVisDial.from_pretrained(tmp_path / "equal.pth")
    assert model.load_report.initial == []
    assert torch.equal(model.itm_head.weight, pretrained.itm_head.weight)

    wider = pair(models.BlipPretrain, models.BlipPretrain, text_heads=1, vit_heads=1, vit_width=48)[0]
    wider.save_pretrained(tmp_path / "wider.pth", "published")
    model = models.BlipVisDial.from_pretrained(tmp_path / "wider.pth")
    assert model.load_report.initial == ["caption_proj.weight", "caption_proj.bias"]
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@pytest.mark.parametrize("module", [models, reference])
def test_refused(module):
    model = pair(module.BlipVisDial, module.BlipVisDial)[0]
    with pytest.raises(ValueError, match="image has 2 images for 3 dialogues; expected as many or image_of_dialogue"):
        model(*INPUTS)
    with pytest.raises(ValueError, match=r"answer_ids has shape \(3, 5\); expected \(3, C, M\)"):
        model(*INPUTS[:5], ANSWERS[0][:, 0], ANSWERS[1][:, 0], image_of_dialogue=IMAGE_OF_DIALOGUE)
    with pytest.raises(ValueError, match=r"labels has shape \(2, 4\); expected \(3, 4\)"):
        model(*INPUTS, labels=LABELS[:2], image_of_dialogue=IMAGE_OF_DIALOGUE)


def test_too_long_a_dialogue_is_refused():
    model = pair(models.BlipVisDial, models.BlipVisDial, max_position_embeddings=12)[0]
    with pytest.raises(ValueError, match=r"texts have up to \d+ tokens; max_position_embeddings=12"):
        model(*INPUTS, image_of_dialogue=IMAGE_OF_DIALOGUE)
