"""Texts that go through the layers several times look up their words once."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from blip_fast import models
from blip_fast.data.packing import pack
from blip_fast.models.text import embed, look_up
from tests.models.common import texts
from tests.models.heads import HEADS


class VocabularyGradients(TorchDispatchMode):
    """Counts gradients of look-ups that have as many rows as the vocabulary."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.words, self.count = words, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.embedding_dense_backward.default:
            self.count += args[2] == self.words
        return function(*args, **kwargs or {})


def test_pretraining_fills_one_gradient_of_the_vocabulary():
    head = HEADS["pretrain"]
    model = head.build(models.BlipPretrain)
    loss = head.loss(model, head.inputs())
    with VocabularyGradients(model.text_encoder.embeddings.word_embeddings.num_embeddings) as counted:
        loss.backward()
    assert counted.count == 1


def test_the_same_states_as_by_look_ups_of_their_own():
    model = HEADS["pretrain"].build(models.BlipPretrain).eval()
    embeddings, packed = model.text_encoder.embeddings, pack(*texts(3, 9))
    own, other = look_up(embeddings, packed, 7)
    assert torch.equal(embed(embeddings, own), embed(embeddings, packed))
    index = torch.tensor([2, 0, 2])
    chosen = packed.with_first_token(7).select(index, 0)
    assert torch.equal(embed(embeddings, other.select(index, 0)), embed(embeddings, chosen))
