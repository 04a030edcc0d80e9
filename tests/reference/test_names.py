"""The reference path has the models and the operations of the fused one, under the same names, with the same arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch

import blip_fast
from blip_fast import models, ops, reference
from tests.ops.test_decode_layer import SHAPES, call

OPERATIONS = pytest.mark.parametrize("name", ops.__all__)


def arguments(name: str) -> dict[str, object]:
    """A small call of each operation, new tensors every time."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    texts = {"cu_seqlens": torch.tensor([0, 2, 5, 6]), "image_of_text": torch.tensor([1, 0, 1])}
    image = {"key": draw(2, 7, 2, 16), "value": draw(2, 7, 2, 16)}
    stream = {"x": draw(4, 8), "residual": draw(4, 8), "weight": draw(8), "bias": draw(8)}
    dropout = {"dropout_p": 0.3, "seed": 2**63 + 5, "offset": 3}
    calls: dict[str, dict[str, object]] = {
        "adamw_momentum_step_": {
            **{key: [draw(3, 2), draw(5)] for key in ("params", "grads", "exp_avgs")},
            "exp_avg_sqs": [draw(3, 2) ** 2, draw(5) ** 2],
            "steps": [torch.zeros(()), torch.ones(())],
            "params_m": [None, draw(5)],
            "lr": 0.1,
        },
        "contrastive_loss": dict(
            zip(("image_feat", "text_feat", "image_feat_m", "text_feat_m"), draw(4, 3, 16), strict=True),
            image_queue=draw(16, 9), text_queue=draw(16, 9), temp=0.5, alpha=0.4,
        ),
        "cross_attention": {"query": draw(6, 2, 16), **image, **texts, **dropout, "image_lengths": torch.tensor([7, 4])},
        "cross_attention_padded": {"query": draw(2, 3, 2, 16), **image, **dropout, "mask": draw(2, 3) > -1},
        "decode_layer": call(SHAPES["beams"]),
        "dropout_add_layer_norm": {**stream, "eps": 1e-6, **dropout},
        "enqueue_": {"queue": draw(4, 10), "features": draw(3, 4), "pointer": torch.tensor([8])},
        "group_rows": {**texts, "tokens": 8, "images": 2},
        "linear": {"input": draw(2, 3, 8), "weight": draw(5, 8), "bias": draw(5), "gelu": True},
        "linear_cross_entropy": {"hidden": draw(6, 8), "weight": draw(20, 8), "bias": draw(20), "labels": torch.arange(6)},
        "mine_hard_negatives": {"sim_i2t": draw(3, 5), "sim_t2i": draw(3, 5), "seed": 7, "row_offset": 1},
        "momentum_update_": {"params_m": [draw(3, 2), draw(5)], "params": [draw(3, 2), draw(5)], "momentum": 0.9},
        "packed_self_attention": {
            **{key: draw(6, 2, 16) for key in ("query", "key", "value")}, "cu_seqlens": texts["cu_seqlens"],
            "max_length": 3, "causal": True, **dropout,
        },
    }  # fmt: skip
    return calls[name]


def tensors(value: object) -> list[torch.Tensor]:
    """All tensors in arguments or results, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [found for part in value for found in tensors(part)] if isinstance(value, (list, tuple)) else []


@OPERATIONS
def test_operations_take_the_same_arguments(name: str) -> None:
    fused, plain = (inspect.signature(getattr(package, name)).parameters for package in (ops, reference))
    assert [(p.name, p.kind, p.default) for p in plain.values()] == [
        (p.name, p.kind, p.default) for p in fused.values()
    ]


@OPERATIONS
def test_operations_give_the_same(name: str) -> None:
    with blip_fast.backend("reference"):
        taken = arguments(name)
        expected = [*tensors(getattr(ops, name)(**taken)), *tensors(taken)]
    taken = arguments(name)
    torch.testing.assert_close([*tensors(getattr(reference, name)(**taken)), *tensors(taken)], expected, equal_nan=True)
    assert expected


@pytest.mark.parametrize("name", [name for name in models.__all__ if name.startswith("Blip") and name != "BlipConfig"])
def test_methods_have_the_same_defaults(name: str) -> None:
    fused, plain = getattr(models, name), getattr(reference, name)
    for method, function in inspect.getmembers(plain, inspect.isfunction):
        given = inspect.signature(getattr(fused, method)).parameters
        for parameter in inspect.signature(function).parameters.values():
            if parameter.default is not parameter.empty and parameter.name in given:
                assert given[parameter.name].default == parameter.default, (method, parameter.name)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (models.BlipCaptioner.generate, {"num_beams": 3, "max_length": 20, "min_length": 5}),
        (models.BlipCaptioner.generate_ids, {"num_beams": 3, "max_length": 20, "min_length": 5}),
        (models.BlipVQA.answer, {"num_beams": 3, "max_length": 10, "min_length": 1}),
        (models.BlipVQA.generate_ids, {"num_beams": 3, "max_length": 10, "min_length": 1}),
        (models.BlipVQA.rank, {"k": 128}),
        (models.BlipVQA.rank_ids, {"k": 128}),
    ],
)
def test_defaults_of_generation_are_the_published_ones(method: Callable[..., object], expected: dict[str, int]) -> None:
    parameters = inspect.signature(method).parameters
    assert {name: parameters[name].default for name in expected} == expected


def test_models() -> None:
    fused = [name for name in models.__all__ if isinstance(getattr(models, name), type)]
    assert len(fused) == 11
    for name in fused:
        assert issubclass(getattr(models, name), getattr(reference, name))
