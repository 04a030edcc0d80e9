"""A step of retrieval fine-tuning at 384 px (forward, backward, optimizer) against the published and a tuned BLIP-base.

As in `pretrain_step` all variants have the same weights, put back before each call, captions as long as COCO's, no dropout
and given negatives, which favours the published model: it draws them one by one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from blip_fast import models, reference
from blip_fast.config import BlipConfig
from blip_fast.optim import AdamWMomentum

from ..job import Case, Setting
from ..peers.tuned import TunedRetrieval, tuned
from ..weights import Weights, same_weights
from .counts import training_flops
from .pretrain_step import ALPHA, TOLERANCE, WATCHED, images_and_texts, step_variant

PLACE = 3
SIZE, PADDED_LENGTH = 384, 35
RECIPE: dict[str, Any] = {"lr": 1e-5, "weight_decay": 0.05}  # as published
BATCH = {"cpu": 4, "cuda": 32}
GRADIENTS = tuple(name for name in WATCHED if not name.startswith("text_decoder"))
NO_TRAINING = "transformers has no training of BLIP's retrieval: no momentum encoders, queues or hard negatives"


@dataclasses.dataclass(frozen=True)
class Step:
    """One training step of ``model``, in bf16 with ``half``. Returns the losses and some of the gradients."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    half: bool
    drop_gradients: bool = True

    def __call__(self, image: Tensor, ids: Tensor, mask: Tensor, image_ids: Tensor, *negatives: Tensor) -> list[Tensor]:
        if self.drop_gradients:
            self.optimizer.zero_grad()
        if not isinstance(self.model, models.BlipRetrieval):
            mask = mask.to(image.device)  # ours reads lengths on the host
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.half):
            out = self.model(image, ids, mask, image_ids, ALPHA, negatives)
        out.loss.backward()
        self.optimizer.step()
        gradients = [self.model.get_parameter(name).grad for name in GRADIENTS]
        return [torch.stack([out.loss_itc, out.loss_itm]).detach(), *gradients]


def cases(setting: Setting) -> Iterable[Case]:
    """Two layers of every encoder; with ``--full`` the whole model too, which takes the small one's place in limited time."""
    config = BlipConfig.base(image_size=SIZE, hidden_dropout=0.0, attention_dropout=0.0)
    if setting.quick or not setting.limited:
        yield _case("2 layers", dataclasses.replace(config, text_layers=2, vit_depth=2), setting.device)
    if not setting.quick:
        yield _case("BLIP-base", config, setting.device)


def _case(name: str, config: BlipConfig, device: torch.device) -> Case:
    on_gpu, batch = device.type == "cuda", BATCH[device.type]
    torch.compiler.reset()  # else shapes of the case before count against the number of compiled versions
    torch.manual_seed(0)
    published = reference.BlipRetrieval(config).to(device).train()
    weights = Weights(published)
    trained = [parameter for parameter in published.parameters() if parameter.requires_grad]
    fused = same_weights(published, models.BlipRetrieval)
    fused.momentum_in_forward = False  # its optimizer moves the momentum copies

    plain = Step(published, torch.optim.AdamW(trained, **RECIPE), half=False)
    tuned_optimizer = torch.optim.AdamW(trained, fused=True, capturable=on_gpu, **RECIPE)
    torchs_best = Step(tuned(published, TunedRetrieval), tuned_optimizer, half=on_gpu)
    ours = Step(fused, AdamWMomentum(trained, published.momentum_pairs(), config.momentum, **RECIPE), half=on_gpu)
    return Case(
        name=f"{name}, B={batch}, {SIZE} px",
        inputs=lambda seed: step_inputs(config, batch, seed, device),
        variants=[
            step_variant("reference", plain, weights, role="baseline"),
            step_variant("tuned", torchs_best, weights),
            step_variant("transformers", plain, weights, unavailable=NO_TRAINING),
            step_variant("blip_fast", ours, weights, role="ours"),
        ],
        tolerance=TOLERANCE[device.type],
        flops=sum(training_flops(models.BlipRetrieval, config, batch, PADDED_LENGTH, total_loss).values()),
        dtype=torch.bfloat16 if on_gpu else torch.float32,
        items=(batch, "pairs"),
        input_sets=2,
    )


def step_inputs(config: BlipConfig, batch: int, seed: int, device: torch.device) -> tuple[Tensor, ...]:
    """Images, padded texts with their mask on the CPU, image ids, and negatives."""
    image, ids, mask, rows = images_and_texts(config, batch, PADDED_LENGTH, seed, device)
    return image, ids, mask, rows, rows.roll(1), rows.roll(-1)


def total_loss(model: Any, image: Tensor, ids: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
    """The loss of a step on what `step_inputs` gives."""
    return model(image, ids, mask, rows, ALPHA, (rows.roll(1), rows.roll(-1))).loss
