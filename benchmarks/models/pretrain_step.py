"""A BLIP-base pre-training step at 224 px (forward, backward, optimizer) against the published and a tuned model.

All variants have the same weights, put back before each call, and the same captions, as long as COCO's: 13 of 30 tokens on
average. Dropout is 0 and the negatives are given, so that losses and gradients can be compared. That favours the published
model, which draws negatives one by one, on a GPU with a read to the host for each.

The memory of a step is what it needs beside weights, optimizer state and gradients, which all variants have alike: gradients
exist already when it is measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from blip_fast import models, reference
from blip_fast.config import BlipConfig
from blip_fast.data.packing import PackedTexts, pack
from blip_fast.optim import AdamWMomentum

from ..captions import PADDED_LENGTH, caption_lengths, padded_texts
from ..job import Aim, Case, Setting, Variant
from ..peers.tuned import TunedPretrain, tuned
from ..weights import Weights, same_weights
from .counts import pretraining_flops

PLACE = 1  # what all else is for: where time is limited, it is not what is left over
ALPHA = 0.4
RECIPE: dict[str, Any] = {"lr": 3e-4, "weight_decay": 0.05}  # as published
BATCHES = {"cpu": (4,), "cuda": (75, 256)}
LARGEST_PUBLISHED = 75  # of the published model on a GPU: its activations in fp32 take all memory above
TOLERANCE = {"cpu": 1e-4, "cuda": 0.1}  # of losses and gradients; on a GPU bf16 against fp32
SLOW_TO_COMPILE = "compiling the whole model takes minutes, and this run has a time limit"
NO_PRETRAINING = "transformers has no pre-training of BLIP: no momentum encoders, queues or hard negatives"
AIMS = {
    "cpu": (Aim(1.55, over="reference"), Aim(1 / 0.6, over="reference", of="memory")),
    "cuda": (
        Aim(8.0, over="reference"),
        Aim(1.5, over="tuned"),
        Aim(0.5),
        Aim(1 / 0.6, over="reference", of="memory"),
        Aim(2000, of="items"),  # on an H200
    ),
}
WATCHED = (
    "visual_encoder.patch_embed.proj.weight",
    "visual_encoder.blocks.1.attn.qkv.weight",
    "text_encoder.embeddings.word_embeddings.weight",
    "text_encoder.encoder.layer.0.crossattention.self.value.weight",
    "text_encoder.encoder.layer.1.output.dense.weight",
    "text_decoder.bert.encoder.layer.0.attention.self.query.weight",
    "vision_proj.weight",
    "itm_head.weight",
)


@dataclasses.dataclass(frozen=True)
class Step:
    """One training step of ``model``, in bf16 with ``half``. Returns the losses and some of the gradients."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    half: bool
    drop_gradients: bool = True

    def __call__(
        self, image: Tensor, ids: Tensor, mask: Tensor, texts: PackedTexts, *negatives: Tensor
    ) -> dict[str, Any]:
        if self.drop_gradients:
            self.optimizer.zero_grad()
        packed = isinstance(self.model, models.BlipPretrain)
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.half):
            inputs = (image, texts, None) if packed else (image, ids, mask)
            out = self.model(*inputs, alpha=ALPHA, negatives=negatives)
        out.loss.backward()
        self.optimizer.step()
        losses = torch.stack([out.loss_itc, out.loss_itm, out.loss_lm]).detach()
        return {"losses": losses} | {name: self.model.get_parameter(name).grad for name in WATCHED}


def cases(setting: Setting) -> Iterable[Case]:
    """Two layers of every encoder; with ``--full`` the whole model too, on a GPU with two batch sizes.

    Where the time is limited the whole model takes the place of the small one, and is not compiled. Else it comes once more
    with narrow layers, whose arithmetic is next to nothing: what is left is what a step costs the host.
    """
    batches = BATCHES[setting.device.type]
    config = BlipConfig.base(hidden_dropout=0.0, attention_dropout=0.0)
    if setting.quick or not setting.limited:
        small = dataclasses.replace(config, text_layers=2, vit_depth=2)
        yield _case(f"2 layers, B={batches[0]}", small, batches[0], setting)
    if not setting.quick:
        for batch in batches:
            yield _case(f"BLIP-base, B={batch}", config, batch, setting)
    if not (setting.quick or setting.limited):
        yield dataclasses.replace(_case("BLIP-base's calls, width 64, B=4", narrowed(config), 4, setting), aims=())


def narrowed(config: BlipConfig) -> BlipConfig:
    """As many layers, parameters and calls, and one head of 64."""
    narrow = {"text_width": 64, "text_heads": 1, "text_intermediate": 256, "vit_width": 64, "vit_heads": 1}
    return dataclasses.replace(config, **narrow, image_size=32, queue_size=512)


def _case(name: str, config: BlipConfig, batch: int, setting: Setting) -> Case:
    device, on_gpu = setting.device, setting.device.type == "cuda"
    torch.compiler.reset()  # else shapes of the case before count against the number of compiled versions
    torch.manual_seed(0)
    published = reference.BlipPretrain(config).to(device).train()
    weights = Weights(published)
    trained = [parameter for parameter in published.parameters() if parameter.requires_grad]
    fits = not on_gpu or batch <= LARGEST_PUBLISHED

    def variant(name: str, model: Any, optimizer: torch.optim.Optimizer, **options: Any) -> Variant:
        return step_variant(name, Step(model, optimizer, on_gpu and model is not published), weights, **options)

    too_large = None if fits else f"its activations in fp32 do not fit above B={LARGEST_PUBLISHED}"
    published_optimizer = torch.optim.AdamW(trained, **RECIPE)
    tuned_optimizer = torch.optim.AdamW(trained, fused=True, capturable=on_gpu, **RECIPE)
    # one for both of ours: answers do not depend on its state, which takes 2 GB
    our_optimizer = AdamWMomentum(trained, published.momentum_pairs(), config.momentum, **RECIPE)
    roles = ("baseline", "peer") if fits else ("peer", "baseline")
    return Case(
        name=name,
        inputs=lambda seed: step_inputs(config, batch, seed, device),
        variants=[
            variant("reference", published, published_optimizer, role=roles[0], unavailable=too_large),
            variant("tuned", tuned(published, TunedPretrain), tuned_optimizer, role=roles[1], cuda_graph=True),
            variant("transformers", published, published_optimizer, unavailable=NO_PRETRAINING),
            variant("blip_fast", fused(published), our_optimizer, role="ours", cuda_graph=True),
            variant(
                "blip_fast, compiled",
                fused(published, compiled=True),
                our_optimizer,
                role="ours",
                cuda_graph=True,
                unavailable=SLOW_TO_COMPILE if setting.limited else None,
            ),
        ],
        tolerance=TOLERANCE[device.type],
        flops=sum(pretraining_flops(models.BlipPretrain, config, batch).values()),
        dtype=torch.bfloat16 if on_gpu else torch.float32,
        aims=[aim for aim in AIMS[device.type] if fits or aim.over != "reference"],
        items=(batch, "pairs"),
        input_sets=2,
    )


def step_variant(name: str, step: Any, weights: Weights, **options: Any) -> Variant:
    """A training step on the same weights each time; gradients stay where they are while its memory is looked at."""
    weigh = dataclasses.replace(step, drop_gradients=False)
    return Variant(name, step, context=weights.restored, weigh=weigh, **options)


def step_inputs(config: BlipConfig, batch: int, seed: int, device: torch.device) -> tuple[Any, ...]:
    """Images, padded texts with their mask, the same texts packed, and negatives."""
    image, ids, mask, rows = images_and_texts(config, batch, PADDED_LENGTH, seed, device)
    return image, ids, mask.to(device), pack(ids, mask), rows.roll(1), rows.roll(-1)


def images_and_texts(
    config: BlipConfig, batch: int, padded_length: int, seed: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images, padded texts, their mask on the CPU, and the numbers of the rows."""
    generator = torch.Generator(device).manual_seed(seed)
    image = torch.randn(batch, 3, config.image_size, config.image_size, generator=generator, device=device)
    ids, mask = padded_texts(caption_lengths(batch, seed), padded_length, config, seed)
    return image, ids.to(device), mask, torch.arange(batch, device=device)


def fused(published: reference.BlipPretrain, compiled: bool = False) -> models.BlipPretrain:
    """Our model on the same weights; its optimizer moves the momentum copies."""
    model = same_weights(published, models.BlipPretrain)
    model.momentum_in_forward = False
    if compiled:
        model.compile(fullgraph=True)
    return model
