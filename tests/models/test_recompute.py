"""Activation checkpointing changes no bit of losses and gradients, with dropout and drop path on, and saves memory."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from blip_fast import models, reference
from blip_fast.config import BlipConfig
from blip_fast.models.vit import image_states
from blip_fast.reference.recompute import MODES
from blip_fast.reference.vit import VisionTransformer
from tests.models.heads import HEADS, Head

DROPOUTS = dict(hidden_dropout=0.2, attention_dropout=0.2, drop_path=0.3)
ENCODERS = ("visual_encoder", "text_encoder", "text_decoder")


def checkpointed(model: torch.nn.Module, mode: str, layers: int | None = None) -> torch.nn.Module:
    for name in ENCODERS:
        if hasattr(model, name):
            getattr(model, name).set_grad_checkpointing(layers=layers, mode=mode)
    return model


def loss_and_gradients(head: Head, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    model.zero_grad()
    loss = head.loss(model, head.inputs())
    loss.backward()
    return {"loss": loss} | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("path", [reference, models], ids=["reference", "fused"])
@pytest.mark.parametrize("name", HEADS)
def test_same_bits(name, path, mode):
    head = HEADS[name]
    model = head.build(getattr(path, head.name), **DROPOUTS)
    buffers = {key: value.clone() for key, value in model.state_dict().items()}
    expected = loss_and_gradients(head, model)
    model.load_state_dict(buffers)
    actual = loss_and_gradients(head, checkpointed(model, mode))
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(actual[key], value), key


def test_the_last_layers_are_chosen_and_the_state_stays():
    encoder = VisionTransformer(BlipConfig.tiny())
    before = list(encoder.state_dict())
    encoder.set_grad_checkpointing(layers=3)
    assert [block.recompute for block in encoder.blocks] == [None, "full", "full", "full"]
    assert list(encoder.state_dict()) == before
    encoder.set_grad_checkpointing(True, 1, "selective")
    assert [block.recompute for block in encoder.blocks] == [None, None, None, "selective"]
    encoder.set_grad_checkpointing(False)
    assert [block.recompute for block in encoder.blocks] == [None] * 4
    with pytest.raises(ValueError, match="layers=5; expected a number from 0 to 4"):
        encoder.set_grad_checkpointing(layers=5)
    with pytest.raises(ValueError, match="mode='some'; expected one of 'full', 'selective'"):
        encoder.set_grad_checkpointing(mode="some")


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of results of operations that are alive, and the most there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak = 0, 0
        self.known = weakref.WeakSet()

    def free(self, size: int) -> None:
        self.live -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and (storage := leaf.untyped_storage()) not in self.known:
                self.known.add(storage)
                weakref.finalize(storage, self.free, storage.nbytes())
                self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        return result


@pytest.mark.parametrize("path", ["reference", "fused"])
def test_memory(path):
    encoder = VisionTransformer(BlipConfig.tiny(vit_depth=8))
    run = encoder if path == "reference" else lambda image: image_states(encoder, image)
    image = torch.randn(8, 3, 64, 64)
    for parameter in encoder.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def peak(mode: str | None) -> int:
        encoder.set_grad_checkpointing(mode is not None, mode=mode or "full")
        with LiveBytes() as counter:
            run(image).sum().backward()
        return counter.peak

    everything = peak(None)
    print(everything, peak("full") / everything, peak("selective") / everything)
    assert peak("full") < 0.5 * everything
    assert peak("selective") < 0.85 * everything
