"""Activation checkpointing of the image encoder, forward and backward: memory and time with everything kept and less.

The extra memory of a call is what it keeps between forward and backward, as gradients exist already when it is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from blip_fast.config import BlipConfig
from blip_fast.models.vit import image_states
from blip_fast.reference.recompute import Recompute
from blip_fast.reference.vit import VisionTransformer

from ..job import Aim, Case, Setting, Variant
from .counts import count_flops

PLACE = 65
BATCH = {"cpu": 4, "cuda": 75}
AIMS = (Aim(1 / 0.75, over="everything kept", of="memory"),)


def cases(setting: Setting) -> Iterable[Case]:
    """Four blocks of ViT-B/16 at 224 px; with ``--full`` all twelve."""
    yield _case(BlipConfig.base(vit_depth=4), setting.device)
    if not setting.quick:
        yield _case(BlipConfig.base(), setting.device)


def _case(config: BlipConfig, device: torch.device) -> Case:
    torch.manual_seed(0)
    encoder, batch = VisionTransformer(config).to(device), BATCH[device.type]

    def run(mode: Recompute | None) -> Callable[[Tensor], list[Tensor]]:
        def step(image: Tensor) -> list[Tensor]:
            encoder.set_grad_checkpointing(mode is not None, mode=mode or "full")
            encoder.zero_grad(set_to_none=False)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = image_states(encoder, image).square().mean()
            loss.backward()
            return [block.attn.qkv.weight.grad for block in encoder.blocks]

        return step

    def inputs(seed: int) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(seed)
        return (torch.randn(batch, 3, config.image_size, config.image_size, generator=generator, device=device),)

    first = inputs(0)
    return Case(
        name=f"{config.vit_depth} blocks, B={batch}",
        inputs=inputs,
        variants=[
            Variant("everything kept", run(None), role="baseline"),
            Variant("full, as published", run("full")),
            Variant("selective", run("selective"), role="ours"),
        ],
        tolerance=1e-6 if device.type == "cpu" else 1e-2,
        flops=sum(count_flops(lambda: run(None)(*first)).values()),
        dtype=torch.float32 if device.type == "cpu" else torch.bfloat16,
        aims=AIMS,
        items=(batch, "images"),
        input_sets=2,
    )
