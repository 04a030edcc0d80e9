"""Products on a CPU: those in bfloat16 (AMX, AMD's dot products) and by thirds of float32 (AMX) agree with all others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import blip_fast
from blip_fast import native
from blip_fast.ops import contrastive_loss, linear, linear_cross_entropy

PROGRAM = "import sys, torch; from tests.ops.test_bf16_products import results; torch.save(results(), sys.argv[1])"
TOLERANCE = {torch.bfloat16: 4e-3, torch.float32: 2e-6}


def results() -> dict[torch.dtype, dict[str, torch.Tensor]]:
    """Results and gradients of the operations that multiply so; nothing is a multiple of a tile."""
    return {dtype: results_in(dtype) for dtype in TOLERANCE}


def results_in(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype).requires_grad_()

    hidden, weight, bias = draw(45, 70), draw(1100, 70), draw(1100)
    losses = linear_cross_entropy(hidden, weight, bias, torch.arange(45) * 24, 0.1, reduction="none")
    losses.mean().backward()
    image, text = draw(67, 40), draw(67, 40)
    queues = [draw(40, 609).detach() for _ in range(2)]
    loss, *_ = contrastive_loss(image, text, image.detach(), text.detach(), *queues, torch.tensor(2.0), alpha=0.4)
    loss.backward()
    leaves = {"hidden": hidden, "weight": weight, "bias": bias, "image_feat": image, "text_feat": text}
    found = {"losses": losses.detach(), "loss": loss.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}
    return found | (linear_results(draw(75, 830), draw(61, 830)) if dtype == torch.float32 else {})


def linear_results(input: torch.Tensor, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    with blip_fast.backend("cpu", op="linear"), blip_fast.backend("cpu", op="linear_backward"):
        output = linear(input, weight)
        output.square().sum().backward()
    return {"output": output.detach(), "grad_input": input.grad, "grad_weight": weight.grad}


def results_limited_to(instructions: str, tmp_path: Path) -> dict[torch.dtype, dict[str, torch.Tensor]]:
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": instructions}
    subprocess.run([sys.executable, "-c", PROGRAM, tmp_path / "results.pt"], env=environment, check=True)
    return torch.load(tmp_path / "results.pt", weights_only=True)


@pytest.mark.skipif(native.load_error() is not None, reason="the C++ library is not built")
@pytest.mark.parametrize("limit", ["AVX512_CORE", "DEFAULT"])
def test_with_and_without_products_of_bfloat16(tmp_path, limit):
    other = results_limited_to(limit, tmp_path)
    same = limit == "DEFAULT" and "ONEDNN_MAX_CPU_ISA" not in os.environ
    for dtype, mine in results().items():
        for name, tensor in mine.items():
            difference = (tensor.float() - other[dtype][name].float()).norm() / tensor.float().norm()
            assert difference <= (0.0 if same else TOLERANCE[dtype]), name


@pytest.mark.skipif(native.load_error() is not None, reason="the C++ library is not built")
def test_both_ways_are_taken(tmp_path):
    other, mine = results_limited_to("AVX512_CORE", tmp_path), results()
    for dtype, names, expected in (
        (torch.float32, ["weight", "image_feat", "output", "grad_weight"], native.multiplies_by_thirds()),
        (torch.bfloat16, ["loss"], torch.ops.blip_fast_native.multiplies_in_bf16()),
    ):
        assert all(torch.equal(mine[dtype][name], other[dtype][name]) != expected for name in names)
