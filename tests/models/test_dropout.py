"""Dropout of hidden states and attention, and drop path: each acts in training, and nothing is dropped in evaluation."""

from __future__ import annotations

import pytest
import torch

from blip_fast import models
from tests.models.heads import HEADS

KINDS = ("hidden_dropout", "attention_dropout", "drop_path")
DRAWS_NEGATIVES = ("pretrain", "retrieval")  # whose losses change with the seed anyway


def loss_of(name: str, training: bool, seed: int, **dropouts: float) -> torch.Tensor:
    head = HEADS[name]
    model = head.build(getattr(models, head.name), **dropouts).train(training)
    inputs = head.inputs()
    torch.manual_seed(seed)
    return head.loss(model, inputs).detach()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [name for name in HEADS if name not in DRAWS_NEGATIVES])
def test_each_kind_acts_in_training(name, kind):
    first, again, other = (loss_of(name, True, seed, **{kind: 0.5}) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("silent", ["attention", "crossattention"])
def test_both_attentions_of_a_layer_drop(silent):
    head = HEADS["caption"]
    model, inputs = head.build(models.BlipCaptioner, attention_dropout=0.5), head.inputs()
    for layer in model.text_decoder.bert.encoder.layer:  # where all values are 0, what is dropped does not show
        getattr(layer, silent).self.value.weight.data.zero_()
        getattr(layer, silent).self.value.bias.data.zero_()
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        losses.append(head.loss(model, inputs))
    assert not torch.equal(*losses)


@pytest.mark.parametrize("name", [name for name in HEADS if name not in DRAWS_NEGATIVES])
def test_without_dropout_no_random_numbers_are_drawn(name):
    loss_of(name, True, 1)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", HEADS)
def test_nothing_is_dropped_in_evaluation(name):
    dropped = loss_of(name, False, 1, **dict.fromkeys(KINDS, 0.5))
    assert torch.equal(dropped, loss_of(name, False, 1))
