"""Peers that need a GPU, on stand-ins for their packages: how their answers are put together."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys

import pytest
import torch
import torch.nn.functional as F

from blip_fast.benchmarks.check import answer_error
from blip_fast.benchmarks.job import Setting
from blip_fast.benchmarks.ops import adamw_momentum, cross_attention, dropout_add_layer_norm, packed_self_attention
from blip_fast.benchmarks.ops.contrastive import contrastive_case, inf_cl_loss
from blip_fast.benchmarks.peers.packages import why_absent, why_apex_is_absent, why_no_flash_attn
from blip_fast.config import BlipConfig

CPU = torch.device("cpu")


@pytest.fixture
def stand_in(monkeypatch):
    """Puts a module of some attributes in the place of a package that is not here."""

    def put(name, **attributes):
        module = importlib.util.module_from_spec(importlib.machinery.ModuleSpec(name, None, is_package=True))
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)

    return put


@pytest.fixture
def inf_cl(stand_in):
    """Inf-CL's interface: a loss for each row of ``q``, whose positive is the key of its number unless labels say so."""

    def cal_flash_loss(q, k, labels=None, scale=None, head_dim=256):
        labels = torch.arange(len(q)) if labels is None else labels
        return F.cross_entropy(scale * q @ k.T, labels, reduction="none")

    stand_in("inf_cl", cal_flash_loss=cal_flash_loss)


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


def assert_right(case, name):
    """The variant answers as the truth, whether or not it is there."""
    variant = next(variant for variant in case.variants if variant.name == name)
    truth = (case.truth or case.baseline.run)(*case.inputs(0))
    error, _ = answer_error(variant.run(*case.inputs(0)), truth)
    assert error <= case.tolerance


@pytest.fixture
def flash_attn(stand_in):
    """flash-attn's interface: sequences of packed queries and keys (T, H, D), by int32 bounds."""

    def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal=False):
        assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
        assert (max_seqlen_q, max_seqlen_k) == (cu_seqlens_q.diff().max(), cu_seqlens_k.diff().max())
        rows, keys = cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist()
        parts = zip(q.split(rows), k.split(keys), v.split(keys), strict=True)
        attended = (
            F.scaled_dot_product_attention(*(t.transpose(0, 1) for t in part), is_causal=causal) for part in parts
        )
        return torch.cat([part.transpose(0, 1) for part in attended])

    stand_in("flash_attn", flash_attn_varlen_func=flash_attn_varlen_func)


@pytest.mark.usefixtures("flash_attn")
@pytest.mark.parametrize("causal", [False, True])
def test_flash_attn_answers_as_packed_self_attention(causal):
    assert_right(packed_self_attention._case(4, causal, torch.float32, CPU), "flash-attn")


@pytest.mark.usefixtures("flash_attn")
@pytest.mark.parametrize("kind", ["training", "decoding"])
def test_flash_attn_answers_as_cross_attention(kind):
    lengths, padded = (
        (torch.tensor([3, 5, 2, 4, 1]), 6) if kind == "training" else (torch.ones(6, dtype=torch.int64), 1)
    )
    job = cross_attention.Job("small", 3, 7, lengths, padded, torch.float32, kind)
    assert_right(cross_attention.attention_case(job, CPU), "flash-attn")


@pytest.fixture
def apex(stand_in):
    """NVIDIA's interfaces: a norm, and an Adam step of lists of gradients, parameters and averages."""

    def fused_layer_norm_affine(input, weight, bias, normalized_shape, eps):
        return F.layer_norm(input, normalized_shape, weight, bias, eps)

    def adam(overflow, lists, lr, beta1, beta2, eps, step, adam_w_mode, bias_correction, weight_decay):
        assert adam_w_mode == bias_correction == 1
        for grad, param, avg, square in zip(*lists, strict=True):
            avg.lerp_(grad, 1 - beta1)
            square.lerp_(grad.square(), 1 - beta2)
            denominator = (square / (1 - beta2**step)).sqrt() + eps
            param.sub_(lr * (avg / (1 - beta1**step) / denominator + weight_decay * param))

    def applier(operation, overflow, lists, *numbers):
        operation(overflow, lists, *numbers)

    stand_in("apex")
    stand_in("apex.optimizers")
    stand_in("apex.multi_tensor_apply", multi_tensor_applier=applier)
    stand_in("apex.normalization")
    stand_in("apex.normalization.fused_layer_norm", fused_layer_norm_affine=fused_layer_norm_affine)
    stand_in("amp_C", multi_tensor_adam=adam)


@pytest.mark.usefixtures("apex")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_apex_answers_as_dropout_add_layer_norm_without_dropout(dtype):
    assert_right(dropout_add_layer_norm._case("small", Setting(CPU), 5, dtype, 0.0), "apex")


@pytest.mark.usefixtures("apex")
def test_apex_answers_as_adamw(monkeypatch):
    monkeypatch.setattr(BlipConfig, "base", BlipConfig.tiny)
    assert_right(adamw_momentum._case("small", "", Setting(CPU)), "apex FusedAdam, foreach lerp")
    assert why_apex_is_absent("amp_C", CPU) == "it needs a CUDA device"
    assert why_apex_is_absent("no_such_extension", CPU) == "no_such_extension is not installed"


def test_peers_that_are_absent_say_why():
    assert why_no_flash_attn(torch.float32, CPU) == "it takes no float32"
    assert why_no_flash_attn(torch.bfloat16, CPU) == why_absent("flash_attn", CPU)
    assert why_apex_is_absent("amp_C", CPU).startswith("NVIDIA apex is not installed")
