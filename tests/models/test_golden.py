"""Every fused head against the original implementation: losses, gradients, generated ids, as the reference's tests do."""

from __future__ import annotations

import pytest
import torch

from blip_fast import models, reference
from tests import golden


def pretrain_step(run: str, model: torch.nn.Module):
    tensors, _ = golden.load("pretrain")
    negatives = (tensors["neg_image_idx"], tensors["neg_text_idx"])
    alpha = {"a0": 0.0, "a4": 0.4}[run]
    return model(tensors["image"], tensors["ids"], tensors["mask"], alpha=alpha, negatives=negatives)


@pytest.mark.parametrize("run", ["a0", "a4"])
def test_pretrain(run, plan):
    tensors, _ = golden.load("pretrain")
    model = golden.build(models.BlipPretrain, "pretrain").train()
    out = pretrain_step(run, model)
    losses = torch.stack([out.loss_itc, out.loss_itm, out.loss_lm])
    torch.testing.assert_close(losses, tensors[f"{run}.loss"], rtol=1e-5, atol=0)
    if run == "a4":
        out.loss.backward()
        golden.assert_gradients(model, "pretrain", "a4.grad.", "gradient_check_a4")
        state = model.state_dict()
        for name, expected in golden.with_prefix("pretrain", "after.").items():
            torch.testing.assert_close(state[name], expected, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("run", ["a0", "a4"])
def test_retrieval(run, plan):
    tensors, _ = golden.load("retrieval")
    model = golden.build(models.BlipRetrieval, "retrieval").train()
    inputs = (tensors["image"], tensors["ids"], tensors["mask"])
    negatives = (tensors["neg_image_idx"], tensors["neg_text_idx"])
    out = model(*inputs, ids=tensors["idx"], alpha={"a0": 0.0, "a4": 0.4}[run], negatives=negatives)
    losses = torch.stack([out.loss_itc, out.loss_itm])
    torch.testing.assert_close(losses, tensors[f"{run}.loss"], rtol=1e-5, atol=0)
    if run == "a4":
        out.loss.backward()
        golden.assert_gradients(model, "retrieval", "a4.grad.", "gradient_check_a4")


def test_reranking():
    tensors, sidecar = golden.load("retrieval_eval")
    model = golden.build(models.BlipRetrieval, "retrieval").eval()
    states, image_feat = model.encode_images(tensors["images"])
    sims = image_feat @ model.encode_texts(tensors["ids"], tensors["mask"]).t()
    torch.testing.assert_close(sims, tensors["sims"], rtol=0, atol=2e-6)
    scores = models.rerank(model, sims, states, tensors["ids"], tensors["mask"], sidecar["k_test"], texts_per_pass=3)
    torch.testing.assert_close(scores[0], tensors["score_i2t"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores[1], tensors["score_t2i"], rtol=1e-5, atol=1e-5)


def test_captioner(plan):
    tensors, _ = golden.load("caption")
    model = golden.build(models.BlipCaptioner, "caption").train()
    out = model(tensors["image"], tensors["ids"], tensors["mask"])
    torch.testing.assert_close(out.loss, tensors["loss"], rtol=1e-5, atol=0)
    out.loss.backward()
    golden.assert_gradients(model, "caption", "grad.", "gradient_check")


GENERATION = {
    "greedy": dict(num_beams=1),
    "beam3": dict(num_beams=3),
    "greedy_rp11": dict(num_beams=1, repetition_penalty=1.1),
    "beam3_rp11": dict(num_beams=3, repetition_penalty=1.1),
    "beam3_max40": dict(num_beams=3, max_length=40),
    "beam3_min14": dict(num_beams=3, min_length=14),
    "beam5_min8_max12": dict(num_beams=5, min_length=8, max_length=12),
    "beam4_default_lengths": dict(num_beams=4, min_length=10, max_length=30),
}


@pytest.mark.parametrize("run", GENERATION)
def test_generated_ids(run):
    tensors, _ = golden.load("caption")
    expected, options = tensors[f"gen.{run}.ids"], GENERATION[run]
    inputs = (tensors["gen_images"], tensors["prompt_ids"])
    assert torch.equal(golden.build(models.BlipCaptioner, "caption").eval().generate_ids(*inputs, **options), expected)


def test_vqa(plan):
    tensors, _ = golden.load("vqa")
    model = golden.build(models.BlipVQA, "vqa").train()
    names = ("image", "ids", "mask", "answer_ids", "answer_mask", "n", "weights")
    out = model(*(tensors[name] for name in names))
    torch.testing.assert_close(out.loss, tensors["loss"], rtol=1e-5, atol=0)
    out.loss.backward()
    golden.assert_gradients(model, "vqa", "grad.", "gradient_check")


def test_vqa_inference():
    tensors, sidecar = golden.load("vqa")
    model = golden.build(models.BlipVQA, "vqa").eval()
    questions = (tensors["image"], tensors["ids"], tensors["mask"])
    run = sidecar["inference_runs"]["generate"]
    ids = model.generate_ids(*questions, run["num_beams"], run["max_length"], run["min_length"])
    assert torch.equal(ids, tensors["gen.ids"])
    k = sidecar["inference_runs"]["rank"]["k_test"]
    ranking = model.rank_ids(*questions, tensors["cand_ids"], tensors["cand_mask"], k=k)
    expected = golden.build(reference.BlipVQA, "vqa").rank_ids(
        *questions, tensors["cand_ids"], tensors["cand_mask"], k=k
    )
    assert torch.equal(ranking.best, tensors["rank.max_ids"])
    order, want = ranking.kept.sort(dim=1), expected.kept.sort(dim=1)  # ties may change the order
    assert torch.equal(order.values, want.values)
    scores = (ranking.scores.gather(1, order.indices), expected.scores.gather(1, want.indices))
    torch.testing.assert_close(*scores, rtol=1e-5, atol=1e-5)


def test_nlvr(plan):
    tensors, _ = golden.load("nlvr")
    model = golden.build(models.BlipNLVR, "nlvr").train()
    pairs = tensors["image"].unflatten(0, (2, -1)).transpose(0, 1)
    loss, logits = model(pairs, tensors["ids"], tensors["mask"], tensors["targets"])
    torch.testing.assert_close(loss, tensors["loss"], rtol=1e-5, atol=0)
    torch.testing.assert_close(logits, tensors["prediction"], rtol=1e-5, atol=1e-6)
    loss.backward()
    golden.assert_gradients(model, "nlvr", "grad.", "gradient_check")


def test_itm_and_features(plan):
    tensors, _ = golden.load("itm_features")
    model = golden.build(models.BlipITM, "itm_features").eval()
    inputs = (tensors["image"], tensors["ids"], tensors["mask"])
    torch.testing.assert_close(model.itm(*inputs), tensors["itm_logits"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.itc(*inputs), tensors["itc_sim"], rtol=1e-5, atol=1e-6)
    extractor = models.BlipFeatureExtractor(model.config)
    extractor.load_state_dict(model.state_dict(), strict=False)
    extractor.eval()
    expected = tensors["feat.multimodal_pad"]
    torch.testing.assert_close(extractor.multimodal_features(*inputs), expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(extractor.image_features(tensors["image"]), tensors["feat.image"], rtol=0, atol=2e-5)
