"""Videos: the fused heads against the reference, and both against what the image heads say."""

from __future__ import annotations

import pytest
import torch

from blip_fast import models, reference
from blip_fast.data.packing import pack
from tests.models.common import assert_same_gradients, pair, texts

FRAMES = torch.randn(3, 4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_retrieval_and_reranking(plan):
    fused, plain = (m.eval() for m in pair(models.BlipVideoRetrieval, reference.BlipVideoRetrieval))
    ids, mask = texts(5, 9)
    states, features = fused.encode_videos(FRAMES)
    expected_states, expected_features = plain.encode_videos(FRAMES)
    assert states.shape == (3, 4 * 5, 32)
    torch.testing.assert_close(states, expected_states, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features, expected_features, rtol=1e-5, atol=1e-5)

    sims = features @ fused.encode_texts(ids, mask).t()
    scores = models.rerank(fused, sims, states, ids, mask, k_test=2)
    enc_ids = torch.cat([torch.full_like(ids[:, :1], fused.config.enc_token_id), ids[:, 1:]], 1)
    wanted = reference.rerank_texts(plain, sims, expected_states, enc_ids, mask, k_test=2)
    torch.testing.assert_close(scores[0], wanted, rtol=1e-5, atol=1e-5)
    wanted = reference.rerank_images(plain, sims.t(), expected_states, enc_ids, mask, k_test=2)
    torch.testing.assert_close(scores[1], wanted, rtol=1e-5, atol=1e-5)


def test_feature_is_the_normalised_mean_of_projections():
    model = pair(models.BlipVideoRetrieval, reference.BlipVideoRetrieval)[0].eval()
    with torch.no_grad():
        projected = torch.stack([model.vision_proj(model.visual_encoder(video)[:, 0]) for video in FRAMES])
    mean = projected.mean(1)
    torch.testing.assert_close(model.encode_videos(FRAMES)[1], mean / mean.norm(dim=1, keepdim=True))


def test_a_still_video_is_its_picture():
    fused = pair(models.BlipVideoRetrieval, reference.BlipVideoRetrieval)[0].eval()
    still = FRAMES[:, :1].expand_as(FRAMES)
    ids, mask = texts(3, 9)
    packed = pack(ids, mask)
    (image_states, image_features), (states, features) = fused.encode_images(FRAMES[:, 0]), fused.encode_videos(still)
    torch.testing.assert_close(features, image_features, rtol=1e-5, atol=1e-6)
    # attention to each state four times over is attention to each once
    scores = fused.match_probe(states[:1], packed)
    torch.testing.assert_close(scores, fused.match_probe(image_states[:1], packed), rtol=1e-5, atol=1e-5)


def test_questions(plan):
    fused, plain = pair(models.BlipVideoQA, reference.BlipVideoQA)
    question, answers = texts(3, 8), texts(6, 5, generator=1)
    counts, weights = torch.tensor([1, 2, 3]), torch.rand(6)
    losses = [model.train()(FRAMES, *question, *answers, counts, weights).loss for model in (fused, plain)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
    for loss in losses:
        loss.backward()
    assert_same_gradients(fused, plain)

    fused.eval(), plain.eval()
    assert torch.equal(fused.generate_ids(FRAMES, *question), plain.generate_ids(FRAMES, *question))
    ranking, expected = (model.rank_ids(FRAMES, *question, *answers, k=4) for model in (fused, plain))
    assert torch.equal(ranking.best, expected.best)
    torch.testing.assert_close(ranking.scores, expected.scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("video", "image"), [("BlipVideoRetrieval", "BlipRetrieval"), ("BlipVideoQA", "BlipVQA")])
def test_names_are_those_of_the_image_heads(video, image, tmp_path):
    for module in (models, reference):
        model = pair(getattr(module, image), getattr(module, image), text_heads=1, vit_heads=1)[0]
        model.save_pretrained(tmp_path / "image.pth", "published")
        again = getattr(module, video).from_pretrained(tmp_path / "image.pth")
        assert list(again.state_dict()) == list(model.state_dict())
        assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
        again.save_pretrained(tmp_path / "video")
        assert type(getattr(module, image).from_pretrained(tmp_path / "video")) is getattr(module, image)


def test_refused():
    fused = pair(models.BlipVideoRetrieval, reference.BlipVideoRetrieval)[0]
    with pytest.raises(ValueError, match=r"frames has shape \(4, 3, 16, 16\); expected \(V, F, 3, S, S\)"):
        fused.encode_videos(FRAMES[0])
    with pytest.raises(ValueError, match="with at least one frame"):
        fused.encode_videos(FRAMES[:, :0])
