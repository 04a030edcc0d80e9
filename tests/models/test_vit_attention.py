"""The library of the image encoder's attention: xformers' layout, and nothing silent where it cannot serve."""

from __future__ import annotations

import importlib.util
import sys
import types

import pytest
import torch

from blip_fast import models, reference
from blip_fast.config import BlipConfig
from blip_fast.models.vit import class_state, image_states
from blip_fast.reference.attention import attention
from blip_fast.reference.vit import VisionTransformer

INSTALLED = importlib.util.find_spec("xformers") is not None


@pytest.fixture
def xformers_calls(monkeypatch):
    """A stand-in for xformers with its documented layout (B, N, H, D); the shapes of queries it is called with."""
    calls = []

    def memory_efficient_attention(query, key, value):
        calls.append(query.shape)
        return attention(*(tensor.transpose(1, 2) for tensor in (query, key, value))).transpose(1, 2)

    package, ops = types.ModuleType("xformers"), types.ModuleType("xformers.ops")
    ops.memory_efficient_attention = memory_efficient_attention
    package.__spec__ = importlib.util.spec_from_loader("xformers", None)
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    return calls


@torch.no_grad()
def test_the_default_device_is_not_asked():
    torch.manual_seed(0)
    encoder = VisionTransformer(BlipConfig.tiny()).eval()
    image = torch.randn(2, 3, 64, 64)
    with torch.device("meta"):
        states = image_states(encoder, image)
    assert torch.equal(states, image_states(encoder, image))


def test_xformers_gets_its_layout(xformers_calls):
    torch.manual_seed(0)
    encoder = VisionTransformer(BlipConfig.tiny()).eval()
    image = torch.randn(2, 3, 64, 64)
    expected = encoder(image)
    models.set_vit_attention(encoder, "xformers")
    torch.testing.assert_close(image_states(encoder, image), expected)
    torch.testing.assert_close(class_state(encoder, image), expected[:, 0])
    assert xformers_calls == [(2, 65, 4, 32)] * 7 + [(2, 1, 4, 32)]
    models.set_vit_attention(encoder, "sdpa")
    torch.testing.assert_close(image_states(encoder, image), expected)
    assert len(xformers_calls) == 8


def test_every_image_encoder_of_a_model_is_switched(xformers_calls):
    model = models.BlipRetrieval(BlipConfig.tiny(vocab_size=200))
    models.set_vit_attention(model, "xformers")
    image_states(model.visual_encoder, torch.randn(1, 3, 64, 64))
    class_state(model.visual_encoder_m, torch.randn(1, 3, 64, 64))
    assert len(xformers_calls) == 8


@pytest.mark.skipif(INSTALLED, reason="xformers is installed")
def test_a_missing_package_is_named():
    with pytest.raises(ImportError, match=r"attention='xformers' needs the package xformers: pip install"):
        models.set_vit_attention(VisionTransformer(BlipConfig.tiny()), "xformers")


def test_what_xformers_cannot_do_is_an_error(xformers_calls, monkeypatch):
    def refuse(*_):
        raise NotImplementedError("No operator found for `memory_efficient_attention_forward`")

    monkeypatch.setattr(sys.modules["xformers.ops"], "memory_efficient_attention", refuse)
    encoder = VisionTransformer(BlipConfig.tiny())
    models.set_vit_attention(encoder, "xformers")
    with pytest.raises(RuntimeError, match=r"xformers has no operator for torch.float32 on cpu, head size 32"):
        image_states(encoder, torch.randn(1, 3, 64, 64))


@pytest.mark.skipif(not INSTALLED, reason="xformers is not installed")
def test_xformers_itself_refuses_the_cpu():
    encoder = VisionTransformer(BlipConfig.tiny())
    models.set_vit_attention(encoder, "xformers")
    with pytest.raises(RuntimeError, match=r"xformers has no operator for torch.float32 on cpu"):
        image_states(encoder, torch.randn(1, 3, 64, 64))


@pytest.mark.gpu
@pytest.mark.skipif(not (INSTALLED and torch.cuda.is_available()), reason="needs xformers and a CUDA device")
def test_xformers_on_a_gpu():
    torch.manual_seed(0)
    encoder = VisionTransformer(BlipConfig.tiny()).cuda()
    image = torch.randn(2, 3, 64, 64, device="cuda")
    expected = encoder(image)
    models.set_vit_attention(encoder, "xformers")
    with torch.autocast("cuda", torch.bfloat16):
        actual = image_states(encoder, image)
    torch.testing.assert_close(actual.float(), expected, rtol=0.05, atol=0.05)
    actual.sum().backward()
    assert encoder.blocks[0].attn.qkv.weight.grad is not None


def test_refusals():
    with pytest.raises(ValueError, match="attention='flash'; expected one of 'sdpa', 'xformers'"):
        models.set_vit_attention(VisionTransformer(BlipConfig.tiny()), "flash")
    with pytest.raises(ValueError, match="model is a TextEncoder without an image encoder"):
        models.set_vit_attention(reference.BlipITM(BlipConfig.tiny(vocab_size=200)).text_encoder, "sdpa")
