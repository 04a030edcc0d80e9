"""The reference pre-training model against the original implementation, number by number."""

from __future__ import annotations

import pytest
import torch

from blip_fast.reference import BlipPretrain, contrastive_loss, hard_negative_weights
from blip_fast.reference.contrastive import positive_targets
from blip_fast.reference.text import with_first_token
from tests import golden

CASE = "pretrain"
ALPHAS = {"a0": 0.0, "a4": 0.4}


def build() -> BlipPretrain:
    return golden.build(BlipPretrain, CASE).train()


def batch(prefix: str = "") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tensors, _ = golden.load(CASE)
    return tensors[f"{prefix}image"], tensors[f"{prefix}ids"], tensors[f"{prefix}mask"]


def negatives(prefix: str = "") -> tuple[torch.Tensor, torch.Tensor]:
    tensors, _ = golden.load(CASE)
    return tensors[f"{prefix}neg_image_idx"], tensors[f"{prefix}neg_text_idx"]


@pytest.mark.parametrize("run", ALPHAS)
def test_losses(run: str) -> None:
    tensors, _ = golden.load(CASE)
    out = build()(*batch(), alpha=ALPHAS[run], negatives=negatives())
    losses = torch.stack([out.loss_itc, out.loss_itm, out.loss_lm])
    torch.testing.assert_close(losses, tensors[f"{run}.loss"], rtol=1e-5, atol=0)
    torch.testing.assert_close(losses.double(), tensors[f"{run}.loss64"], rtol=1e-5, atol=0)
    torch.testing.assert_close(out.loss, losses.sum(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("run", ALPHAS)
def test_gradients(run: str) -> None:
    if not any(name.startswith(f"{run}.grad.") for name in golden.load(CASE)[0]):
        pytest.skip("only the full set of golden files stores these gradients")
    model = build()
    model(*batch(), alpha=ALPHAS[run], negatives=negatives()).loss.backward()
    golden.assert_gradients(model, CASE, f"{run}.grad.", f"gradient_check_{run}")
    assert all(p.grad is None for name, p in model.named_parameters() if not p.requires_grad)


def test_intermediate_values() -> None:
    tensors, _ = golden.load(CASE)
    model = build()
    image, ids, mask = batch()
    image_embeds, image_feat, text_feat = model.online_features(image, ids, mask)
    model.update_momentum()
    image_feat_m, text_feat_m = model.momentum_features(image, ids, mask)
    enc_ids = with_first_token(ids, model.config.enc_token_id)
    values = {
        "image_embeds": image_embeds,
        "image_feat": image_feat,
        "text_feat": text_feat,
        "image_feat_m": image_feat_m,
        "text_feat_m": text_feat_m,
        "output_pos.last_hidden_state": model.text_encoder(enc_ids, mask, image_embeds),
        "decoder_output.logits": model.text_decoder(
            with_first_token(ids, model.config.dec_token_id), mask, image_embeds
        ),
    }
    for name, value in values.items():
        if f"mid.{name}" in tensors:
            expected = tensors[f"mid.{name}"]
            torch.testing.assert_close(value, expected, rtol=0, atol=2e-5 * float(expected.abs().max()), msg=name)


@pytest.mark.parametrize("run", ALPHAS)
def test_contrastive_loss(run: str) -> None:
    tensors, _ = golden.load(CASE)
    features = [tensors[f"mid.{name}"] for name in ("image_feat", "text_feat", "image_feat_m", "text_feat_m")]
    queues = (tensors["init.image_queue"], tensors["init.text_queue"])
    loss, sim_i2t, sim_t2i = contrastive_loss(*features, *queues, tensors["init.temp"], ALPHAS[run])
    torch.testing.assert_close(loss, tensors[f"{run}.loss_ita"], rtol=1e-5, atol=0)
    torch.testing.assert_close(sim_i2t, tensors["mid.sim_i2t"][:, :4], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sim_t2i, tensors["mid.sim_t2i"][:, :4], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(positive_targets(queues[0].new_zeros(32, 28), 4, None, None), tensors["mid.sim_targets"])


def test_negative_weights_and_draws() -> None:
    tensors, _ = golden.load(CASE)
    weights_i2t, weights_t2i = hard_negative_weights(tensors["mid.sim_i2t"][:, :4], tensors["mid.sim_t2i"][:, :4])
    torch.testing.assert_close(weights_i2t, tensors["mid.weights_i2t"], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(weights_t2i, tensors["mid.weights_t2i"], rtol=1e-5, atol=1e-7)

    model = build()
    torch.manual_seed(0)
    out = model(*batch(), alpha=0.4)
    torch.manual_seed(0)
    for b in range(4):
        assert out.negatives.image_for_text[b] == torch.multinomial(tensors["mid.weights_t2i"][b], 1)
    for b in range(4):
        assert out.negatives.text_for_image[b] == torch.multinomial(tensors["mid.weights_i2t"][b], 1)


def test_state_after_one_step() -> None:
    model = build()
    model(*batch(), alpha=0.4, negatives=negatives())
    state = model.state_dict()
    for name, expected in golden.with_prefix(CASE, "after.").items():
        torch.testing.assert_close(state[name], expected, rtol=1e-5, atol=1e-6, msg=name)


def test_three_adamw_steps() -> None:
    tensors, sidecar = golden.load(CASE)
    hyper = sidecar["hyper"]
    model = build()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=hyper["lr"],
        betas=hyper["adam_betas"],
        eps=hyper["adam_eps"],
        weight_decay=hyper["weight_decay"],
    )
    for step, alpha in enumerate(hyper["step_alphas"], start=1):
        optimizer.zero_grad()
        out = model(*batch(f"step{step}."), alpha=alpha, negatives=negatives(f"step{step}."))
        losses = torch.stack([out.loss_itc, out.loss_itm, out.loss_lm])
        torch.testing.assert_close(losses, tensors[f"step{step}.loss"], rtol=1e-5, atol=0)
        out.loss.backward()
        optimizer.step()
    state = model.state_dict()
    noise = sidecar["final_state_float32_vs_float64_max_abs"]
    for name, expected in golden.with_prefix(CASE, "final.").items():
        online = name.replace("_m.", ".", 1)  # a momentum copy takes up 1 - momentum of the noise in each step
        slack = 2 * noise.get(name, 0.0) if online == name else 3 * (1 - hyper["momentum"]) * noise.get(online, 0.0)
        torch.testing.assert_close(state[name], expected, rtol=0, atol=2e-6 + slack, msg=name)
