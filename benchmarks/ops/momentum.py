"""Momentum update of BLIP's encoders against the published loop and torch's foreach.

``m = momentum * m + (1 - momentum) * p`` reads the copy and the parameter and writes the copy: 12 bytes per fp32
parameter, 10 where the parameter is bf16.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from blip_fast.config import BlipConfig
from blip_fast.ops import momentum_update_
from blip_fast.reference import BlipPretrain

from ..backends import backend_variants
from ..job import Aim, Case, Setting, Variant

PLACE = 50
MOMENTUM = 0.995
AIMS = {
    "cpu": (Aim(4.0, over="published loop"), Aim(1.0, over="torch._foreach_lerp_")),
    "cuda": (Aim(0.85), Aim(1.0, over="torch._foreach_lerp_")),
}
Tensors = list[Tensor]


def cases(setting: Setting) -> Iterable[Case]:
    """BLIP-base's real tensor list in fp32; with ``--full`` also bf16 parameters that have fp32 copies."""
    yield _case("BLIP-base, fp32", torch.float32, setting)
    if not setting.quick:
        yield _case("BLIP-base, bf16 parameters, fp32 copies", torch.bfloat16, setting)


def _case(name: str, dtype: torch.dtype, setting: Setting) -> Case:
    with torch.device("meta"):
        shapes = [copy.shape for copy, _ in BlipPretrain(BlipConfig.base()).momentum_pairs()]
    same_dtype = dtype == torch.float32

    def inputs(seed: int) -> tuple[Tensors, Tensors, Tensors]:
        generator = torch.Generator(setting.device).manual_seed(seed)
        copies = [torch.randn(shape, generator=generator, device=setting.device) for shape in shapes]
        params = [torch.randn(shape, generator=generator, device=setting.device).to(dtype) for shape in shapes]
        return copies, params, [copy.clone() for copy in copies]

    mixed = None if same_dtype else "it takes tensors of one dtype only"
    peers = [
        Variant("published loop", published_loop, role="baseline"),
        Variant("torch._foreach_lerp_", foreach_lerp, unavailable=mixed, cuda_graph=True),
    ]
    return Case(
        name=name,
        inputs=inputs,
        variants=peers + backend_variants("momentum_update_", ours, setting.device, cuda_graph=True),
        truth=truth,
        tolerance=1e-6 if same_dtype else 1e-4,  # the published loop rounds p * (1 - momentum) to bf16
        bytes=(8 + dtype.itemsize) * sum(shape.numel() for shape in shapes),
        aims=[aim for aim in AIMS[setting.device.type] if same_dtype or aim.over != "torch._foreach_lerp_"],
    )


def published_loop(copies: Tensors, params: Tensors, own: Tensors) -> Tensors:
    """The loop of the published code, on its own copies: it gives each new memory, and the others' must stay where they are."""
    for param, copy in zip(params, own, strict=True):
        copy.data = copy.data * MOMENTUM + param.data * (1.0 - MOMENTUM)
    return own


def foreach_lerp(copies: Tensors, params: Tensors, own: Tensors) -> Tensors:
    torch._foreach_lerp_(copies, params, 1.0 - MOMENTUM)
    return copies


def ours(copies: Tensors, params: Tensors, own: Tensors) -> Tensors:
    momentum_update_(copies, params, MOMENTUM)
    return copies


def truth(copies: Tensors, params: Tensors, own: Tensors) -> Tensors:
    """The same in float64."""
    return [
        copy.double() * MOMENTUM + param.double() * (1.0 - MOMENTUM) for copy, param in zip(copies, params, strict=True)
    ]
