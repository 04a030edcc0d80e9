"""A linear layer on a CPU against torch's product: with GELU behind it in inference, and forward and backward in training.

A layer of BLIP-base's MLP, 768 to 3,072: for the rows of decoding (one caption, and four with three beams), whose time is
that of reading 9.4 MB of weights; for an image of 577 tokens, whose time is that of the products; and for training on four
images of 197 tokens. Beside each backend stands what is chosen on this machine without one being forced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_fast.ops import linear

from ..backends import backend_variants
from ..job import Aim, Case, Setting, Variant

PLACE = 65
C, N = 768, 3072
DECODING, IMAGE, TRAINING = (1, 12), 577, 788  # rows


def cases(setting: Setting) -> Iterable[Case]:
    """One and twelve rows, an image, and training; on a GPU nothing, since there torch's product is what runs."""
    if setting.device.type == "cpu":
        for rows in (*DECODING, IMAGE):
            yield _inference(rows, setting.device)
        yield _training(TRAINING, setting.device)


def _inputs(rows: int, device: torch.device, seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator(device).manual_seed(seed)
    shapes = ((rows, C), (N, C), (N,), (rows, N))
    return tuple(torch.randn(shape, generator=generator, device=device) for shape in shapes)


def _inference(rows: int, device: torch.device) -> Case:
    def inputs(seed: int) -> tuple[Tensor, ...]:
        return _inputs(rows, device, seed)[:3]

    return Case(
        name=f"{rows} rows, {C} to {N}, float32",
        inputs=inputs,
        variants=[
            Variant("F.linear, F.gelu", eager, role="baseline"),
            *_ours(lambda rows, weight, bias: linear(rows, weight, bias, gelu=True), device),
        ],
        truth=lambda *args: eager(*(tensor.double() for tensor in args)),
        tolerance=1e-6,
        flops=2 * rows * C * N,
        bytes=4 * (rows * C + N * C + N + rows * N),
        aims=[Aim(1.5 if rows in DECODING else 1.0, over="F.linear, F.gelu")],
    )


def _training(rows: int, device: torch.device) -> Case:
    def inputs(seed: int) -> tuple[Tensor, ...]:
        *leaves, grad_output = _inputs(rows, device, seed)
        return (*(leaf.requires_grad_() for leaf in leaves), grad_output)

    def step(layer: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, ...]]:
        def run(*args: Tensor) -> tuple[Tensor, ...]:
            *leaves, grad_output = args
            output = layer(*leaves)
            return output.detach(), *torch.autograd.grad(output, leaves, grad_output)

        return run

    return Case(
        name=f"{rows} rows, {C} to {N}, forward and backward, float32",
        inputs=inputs,
        variants=[
            Variant("F.linear", step(F.linear), role="baseline"),
            *_ours(step(linear), device),
        ],
        truth=lambda *args: step(F.linear)(*(t.detach().double().requires_grad_(t.requires_grad) for t in args)),
        tolerance=1e-6,
        flops=6 * rows * C * N,
        bytes=4 * (4 * rows * C + 3 * N * C + 2 * N + 4 * rows * N),
        aims=[Aim(1.5, over="F.linear")],
    )


def _ours(run: Callable[..., object], device: torch.device) -> list[Variant]:
    return [*backend_variants("linear", run, device), Variant("blip_fast, as chosen", run, role="ours")]


def eager(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    with torch.no_grad():
        return F.gelu(F.linear(input, weight, bias))
