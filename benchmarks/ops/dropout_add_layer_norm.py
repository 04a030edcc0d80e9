"""LayerNorm of a residual sum with dropout, forward and backward, against torch's three operations and apex.

Bytes: forward reads x and the residual and writes the sum and the result; backward reads the sum and the gradients of the
results and writes those of x and the residual, which are one tensor in fp32 without dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from blip_fast.ops import dropout_add_layer_norm
from blip_fast.reference import dropout_add_layer_norm as reference

from ..backends import backend_variants
from ..job import Aim, Case, Setting, Variant
from ..peers.packages import why_apex_is_absent

PLACE = 70
C = 768
AIMS = {"cpu": (Aim(1.5, over="eager"),), "cuda": (Aim(0.85), Aim(1.5, over="eager"))}
Norm = Callable[..., Any]


def cases(setting: Setting) -> Iterable[Case]:
    """BLIP-base's sub-layers: texts (post-norm, dropout 0.1) and ViT (pre-norm, no dropout), fp32; on a GPU bf16 layers too."""
    images = 75 if setting.device.type == "cuda" else 16
    texts = 13 * images
    yield _case(f"{texts} text tokens, post-norm, dropout 0.1, fp32", setting, texts, torch.float32, 0.1)
    yield _case(f"{images} images of 197 tokens, pre-norm, fp32", setting, 197 * images, torch.float32, 0.0)
    if setting.device.type == "cuda":
        yield _case(f"{texts} text tokens, post-norm, dropout 0.1, bf16 layers", setting, texts, torch.bfloat16, 0.1)
        yield _case(f"{images} images of 197 tokens, pre-norm, bf16 layers", setting, 197 * images, torch.bfloat16, 0.0)


def _case(name: str, setting: Setting, rows: int, dtype: torch.dtype, dropout_p: float) -> Case:
    device, prenorm = setting.device, dropout_p == 0.0

    def inputs(seed: int) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(seed)
        x, residual, grad, grad_sum = (torch.randn(rows, C, generator=generator, device=device) for _ in range(4))
        weight, bias = (torch.randn(C, generator=generator, device=device) for _ in range(2))
        learned = [t.requires_grad_() for t in (x.to(dtype), residual, weight, bias)]
        return (*learned, grad.to(dtype if prenorm else torch.float32), grad_sum)

    def step(norm: Norm) -> Callable[..., list[Tensor]]:
        def run(*args: Tensor) -> list[Tensor]:
            learned, grads = args[:4], args[4:] if prenorm else args[4:5]
            results = norm(*learned, dropout_p, prenorm)
            gradients = torch.autograd.grad(results, learned, grads)
            # Without dropout everything is compared, with it what another mask leaves alone.
            return [*results, *gradients] if prenorm else [gradients[3]]

        return run

    def double(*args: Tensor) -> list[Tensor]:
        return step(eager)(*(t.detach().double().requires_grad_(t.requires_grad) for t in args))

    layer, stream = dtype.itemsize, 4
    forward = layer + 2 * stream + (layer if prenorm else stream)
    backward = stream + (layer + stream if prenorm else stream) + stream
    backward += 0 if prenorm and dtype == torch.float32 else layer
    no_apex = "it has no dropout" if dropout_p else why_apex_is_absent("fused_layer_norm_cuda", device)
    return Case(
        name=name,
        inputs=inputs,
        variants=[
            Variant("eager", step(eager), role="baseline", cuda_graph=True),
            Variant("apex", step(apex), unavailable=no_apex),
            *backend_variants("dropout_add_layer_norm", step(ours), device, cuda_graph=True),
        ],
        truth=double,
        tolerance=1e-5 if dtype == torch.float32 else 2e-2,
        bytes=(forward + backward) * rows * C,
        dtype=dtype,
        aims=AIMS[device.type],
    )


def eager(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, dropout_p: float, prenorm: bool
) -> tuple[Tensor, ...]:
    results = reference(x, residual, weight, bias, 1e-6, dropout_p, prenorm=prenorm)
    return results if prenorm else (results,)


def apex(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, dropout_p: float, prenorm: bool
) -> tuple[Tensor, ...]:
    """What FusedLayerNorm calls, on torch's sum."""
    from apex.normalization.fused_layer_norm import fused_layer_norm_affine

    total = residual + x
    normed = fused_layer_norm_affine(input=total, weight=weight, bias=bias, normalized_shape=(C,), eps=1e-6)
    return normed.to(x.dtype), total


def ours(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, dropout_p: float, prenorm: bool
) -> tuple[Tensor, ...]:
    results = dropout_add_layer_norm(x, residual, weight, bias, 1e-6, dropout_p, prenorm=prenorm)
    return results if prenorm else (results,)
