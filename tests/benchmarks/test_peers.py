"""Peers that need a GPU, on stand-ins for their packages: how their answers are put together."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys

import pytest
import torch
import torch.nn.functional as F

from blip_fast.benchmarks.ops.contrastive import contrastive_case, inf_cl_loss
from blip_fast.benchmarks.peers.packages import why_absent

CPU = torch.device("cpu")


@pytest.fixture
def inf_cl(monkeypatch):
    """Inf-CL's interface: a loss for each row of ``q``, whose positive is the key of its number unless labels say so."""

    def cal_flash_loss(q, k, labels=None, scale=None, head_dim=256):
        labels = torch.arange(len(q)) if labels is None else labels
        return F.cross_entropy(scale * q @ k.T, labels, reduction="none")

    module = importlib.util.module_from_spec(importlib.machinery.ModuleSpec("inf_cl", None))
    monkeypatch.setattr(module, "cal_flash_loss", cal_flash_loss, raising=False)
    monkeypatch.setitem(sys.modules, "inf_cl", module)


@pytest.mark.usefixtures("inf_cl")
def test_inf_cl_answers_as_the_published_form():
    case = contrastive_case(3, 17, 0.0, torch.float32, CPU)
    inputs = case.inputs(0)
    loss, *others = inf_cl_loss(*inputs, alpha=0.0)
    gradients = torch.autograd.grad(loss, (inputs[0], inputs[1], inputs[6]))
    torch.testing.assert_close((loss, *others, *gradients), case.baseline.run(*inputs))


def test_inf_cl_is_listed_with_the_reason_for_its_absence():
    def reason(alpha):
        case = contrastive_case(3, 17, alpha, torch.float32, CPU)
        return next(variant.unavailable for variant in case.variants if variant.name == "Inf-CL")

    assert reason(0.4) == "it takes no soft targets"
    assert reason(0.0) == why_absent("inf_cl", CPU)
    assert why_absent("torch", CPU) == "it needs a CUDA device"
    assert why_absent("no_such_package", CPU) == "no_such_package is not installed"
