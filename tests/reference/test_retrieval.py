"""The reference retrieval model and its re-ranking against the original implementation."""

from __future__ import annotations

import pytest
import torch

from blip_fast.reference import BlipRetrieval, contrastive_loss, rerank_images, rerank_texts
from blip_fast.reference.contrastive import positive_targets
from blip_fast.reference.text import with_first_token
from tests import golden

CASE = "retrieval"
ALPHAS = {"a0": 0.0, "a4": 0.4}


def step(model: BlipRetrieval, alpha: float):
    tensors, _ = golden.load(CASE)
    inputs = (tensors["image"], tensors["ids"], tensors["mask"])
    negatives = (tensors["neg_image_idx"], tensors["neg_text_idx"])
    return model(*inputs, ids=tensors["idx"], alpha=alpha, negatives=negatives)


@pytest.mark.parametrize("run", ALPHAS)
def test_losses(run: str) -> None:
    tensors, _ = golden.load(CASE)
    out = step(golden.build(BlipRetrieval, CASE).train(), ALPHAS[run])
    losses = torch.stack([out.loss_itc, out.loss_itm])
    torch.testing.assert_close(losses, tensors[f"{run}.loss"], rtol=1e-5, atol=0)
    torch.testing.assert_close(losses.double(), tensors[f"{run}.loss64"], rtol=1e-5, atol=0)


def test_gradients_and_state_after_one_step() -> None:
    model = golden.build(BlipRetrieval, CASE).train()
    step(model, alpha=0.4).loss.backward()
    golden.assert_gradients(model, CASE, "a4.grad.", "gradient_check_a4")
    state = model.state_dict()
    for name, expected in golden.with_prefix(CASE, "after.").items():
        torch.testing.assert_close(state[name], expected, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("run", ALPHAS)
def test_contrastive_loss(run: str) -> None:
    tensors, _ = golden.load(CASE)
    features = [tensors[f"mid.{name}"] for name in ("image_feat", "text_feat", "image_feat_m", "text_feat_m")]
    queues = (tensors["init.image_queue"], tensors["init.text_queue"])
    ids, queue_ids = tensors["idx"], tensors["init.idx_queue"]
    loss, sim_i2t, _ = contrastive_loss(*features, *queues, tensors["init.temp"], ALPHAS[run], ids, queue_ids)
    torch.testing.assert_close(loss, tensors[f"{run}.loss_ita"], rtol=1e-5, atol=0)
    torch.testing.assert_close(sim_i2t, tensors["mid.sim_i2t"][:, :4], rtol=1e-5, atol=1e-5)
    targets = positive_targets(features[0].new_zeros(32, 28), 4, ids, queue_ids)
    torch.testing.assert_close(targets, tensors["mid.sim_targets"])


def test_negative_weights() -> None:
    tensors, _ = golden.load(CASE)
    model = golden.build(BlipRetrieval, CASE)
    weights = model.negative_weights(tensors["mid.image_feat"], tensors["mid.text_feat"], tensors["idx"])
    for name, actual in zip(("weights_i2t", "weights_t2i"), weights, strict=True):
        torch.testing.assert_close(actual, tensors[f"mid.{name}"], rtol=1e-5, atol=1e-7)
    drawn = model.mine_negatives(tensors["mid.image_feat"], tensors["mid.text_feat"], tensors["idx"])
    rows = torch.arange(4)
    assert (tensors["mid.weights_t2i"][rows, drawn.image_for_text] > 0).all()
    assert (tensors["mid.weights_i2t"][rows, drawn.text_for_image] > 0).all()


def test_all_ids_equal_and_single_pair() -> None:
    """Where the original crashes (no candidate), every row is its own negative."""
    tensors, _ = golden.load(CASE)
    model = golden.build(BlipRetrieval, CASE).train()
    for batch in (4, 1):
        inputs = (tensors["image"][:batch], tensors["ids"][:batch], tensors["mask"][:batch])
        out = model(*inputs, ids=torch.full((batch,), 7), alpha=0.4)
        assert torch.equal(out.negatives.image_for_text, torch.arange(batch))
        assert torch.equal(out.negatives.text_for_image, torch.arange(batch))
        assert out.loss.isfinite()


def test_reranking() -> None:
    tensors, sidecar = golden.load("retrieval_eval")
    model = golden.build(BlipRetrieval, CASE)
    image_embeds, image_feat = model.encode_images(tensors["images"])
    text_feat = model.encode_texts(tensors["ids"], tensors["mask"])
    sims = image_feat @ text_feat.t()
    torch.testing.assert_close(sims, tensors["sims"], rtol=0, atol=2e-6)
    enc_ids = with_first_token(tensors["ids"], model.config.enc_token_id)
    texts = (enc_ids, tensors["mask"], sidecar["k_test"])
    score_i2t = rerank_texts(model, sims, image_embeds, *texts)
    score_t2i = rerank_images(model, sims.t(), image_embeds, *texts)
    torch.testing.assert_close(score_i2t, tensors["score_i2t"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(score_t2i, tensors["score_t2i"], rtol=1e-5, atol=1e-5)
