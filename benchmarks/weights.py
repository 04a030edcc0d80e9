"""One set of weights for all variants of a model, as at the start before each call."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import TypeVar, cast

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def same_weights(model: nn.Module, model_class: type[Model]) -> Model:
    """A model of ``model_class``, a subclass that adds no state, on the parameters and buffers of ``model``."""
    tensors = [*model.parameters(), *model.buffers()]
    result = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    result.__class__ = model_class
    return cast(Model, result)


class Weights:
    """Parameters and buffers of a model, and a copy of them as they are now."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters = list(model.parameters())
        self.tensors = [tensor.detach() for tensor in (*self.parameters, *model.buffers())]
        self.initial = [tensor.clone() for tensor in self.tensors]

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Put the copy back and set gradients to 0, on entry."""
        torch._foreach_copy_(self.tensors, self.initial)
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.zero_()
        yield
