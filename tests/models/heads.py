"""Every head that is trained, with inputs and its loss, for tests that go over all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from blip_fast.config import BlipConfig
from tests.models.common import SIZES, texts

BATCH = 3


@dataclasses.dataclass(frozen=True)
class Head:
    """A head's class name, its inputs, and its loss from a model and these inputs."""

    name: str
    make_inputs: Callable[[BlipConfig], tuple[Tensor, ...]]
    loss: Callable[[Any, tuple[Tensor, ...]], Tensor]

    def build(self, model_class: type, **overrides: Any) -> nn.Module:
        """A model with random weights in train mode."""
        torch.manual_seed(0)
        return model_class(BlipConfig(**(SIZES | overrides))).train()

    def inputs(self, **overrides: Any) -> tuple[Tensor, ...]:
        """The same inputs in each call."""
        with torch.random.fork_rng():
            torch.manual_seed(2)
            return self.make_inputs(BlipConfig(**(SIZES | overrides)))


def _pairs(config: BlipConfig) -> tuple[Tensor, ...]:
    return _images(config), *texts(BATCH, 9)


def _images(config: BlipConfig, *shape: int) -> Tensor:
    return torch.randn(BATCH, *shape, 3, config.image_size, config.image_size)


def _answers(image: Tensor) -> tuple[Tensor, ...]:
    counts = torch.tensor([2, 1, 1])
    return image, *texts(BATCH, 9), *texts(4, 5, generator=1), counts, torch.tensor([0.5, 1.0, 0.2, 1.0])


def _dialogues(config: BlipConfig) -> tuple[Tensor, ...]:
    return *_pairs(config), *texts(BATCH, 8, generator=1), *texts(BATCH, 2, 5, generator=2), torch.eye(3, 2).long()


IDS = torch.tensor([4, 4, 5])
LABELS = torch.tensor([0, 1, 1])
# fmt: off
HEADS = {
    "pretrain": Head("BlipPretrain", _pairs, lambda model, args: model(*args, alpha=0.4).loss),
    "retrieval": Head("BlipRetrieval", lambda config: (*_pairs(config), IDS), lambda model, args: model(*args, alpha=0.4).loss),
    "caption": Head("BlipCaptioner", _pairs, lambda model, args: model(*args).loss),
    "vqa": Head("BlipVQA", lambda config: _answers(_images(config)), lambda model, args: model(*args).loss),
    "nlvr": Head("BlipNLVR", lambda config: (_images(config, 2), *texts(BATCH, 9), LABELS),
                 lambda model, args: model(*args).loss),
    "videoqa": Head("BlipVideoQA", lambda config: _answers(_images(config, 2)), lambda model, args: model(*args).loss),
    "visdial": Head("BlipVisDial", _dialogues, lambda model, args: model(*args[:-1], labels=args[-1]).loss),
}
# fmt: on
