"""A linear layer with GELU behind it, for inference on a CPU, against torch's product and its GELU.

A layer of BLIP-base's MLP, 768 to 3,072: for the rows of decoding (one caption, and four with three beams), whose time is
that of reading 9.4 MB of weights, and for an image of 577 tokens, whose time is that of the products.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_fast.ops import linear

from ..backends import backend_variants
from ..job import Aim, Case, Setting, Variant

PLACE = 65
C, N = 768, 3072
DECODING, IMAGE = (1, 12), 577  # rows


def cases(setting: Setting) -> Iterable[Case]:
    """One and twelve rows, and an image; on a GPU nothing, since there torch's product is what runs."""
    if setting.device.type == "cpu":
        for rows in (*DECODING, IMAGE):
            yield _case(rows, setting.device)


def _case(rows: int, device: torch.device) -> Case:
    def inputs(seed: int) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(seed)
        shapes = ((rows, C), (N, C), (N,))
        return tuple(torch.randn(shape, generator=generator, device=device) for shape in shapes)

    return Case(
        name=f"{rows} rows, {C} to {N}, float32",
        inputs=inputs,
        variants=[
            Variant("F.linear, F.gelu", eager, role="baseline"),
            *backend_variants("linear", lambda rows, weight, bias: linear(rows, weight, bias, gelu=True), device),
        ],
        truth=lambda *args: eager(*(tensor.double() for tensor in args)),
        tolerance=1e-6,
        flops=2 * rows * C * N,
        bytes=4 * (rows * C + N * C + N + rows * N),
        aims=[Aim(1.5 if rows in DECODING else 1.0, over="F.linear, F.gelu")],
    )


def eager(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    with torch.no_grad():
        return F.gelu(F.linear(input, weight, bias))
