"""bfloat16 on a CPU: the products of processors with AMX, and those in float32 of all others, agree."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from blip_fast import native
from blip_fast.ops import contrastive_loss, linear_cross_entropy

PROGRAM = "import sys, torch; from tests.ops.test_bf16_products import results; torch.save(results(), sys.argv[1])"


def results() -> dict[str, torch.Tensor]:
    """Losses and gradients of both operations that multiply in bfloat16; nothing is a multiple of a tile."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).bfloat16().requires_grad_()

    hidden, weight, bias = draw(45, 70), draw(1100, 70), draw(1100)
    losses = linear_cross_entropy(hidden, weight, bias, torch.arange(45) * 24, 0.1, reduction="none")
    losses.mean().backward()
    image, text = draw(7, 40), draw(7, 40)
    queues = [draw(40, 609).detach() for _ in range(2)]
    loss, *_ = contrastive_loss(image, text, image.detach(), text.detach(), *queues, torch.tensor(2.0), alpha=0.4)
    loss.backward()
    leaves = {"hidden": hidden, "weight": weight, "bias": bias, "image_feat": image, "text_feat": text}
    return {"losses": losses.detach(), "loss": loss.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}


@pytest.mark.skipif(native.load_error() is not None, reason="the C++ library is not built")
@pytest.mark.parametrize("limit", ["AVX512_CORE", "DEFAULT"])
def test_with_and_without_amx(tmp_path, limit):
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": limit}
    subprocess.run([sys.executable, "-c", PROGRAM, tmp_path / "other.pt"], env=environment, check=True)
    other = torch.load(tmp_path / "other.pt", weights_only=True)
    for name, mine in results().items():
        difference = (mine.float() - other[name].float()).norm() / mine.float().norm()
        assert difference <= (0.0 if limit == "DEFAULT" and "ONEDNN_MAX_CPU_ISA" not in os.environ else 4e-3), name
