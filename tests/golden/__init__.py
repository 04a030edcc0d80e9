"""Numbers computed with the original implementation, which the reference and the fused models must reproduce.

The files beside this module are a selection made by ``select_tensors.py``; ``BLIP_FAST_GOLDEN`` names a folder with the
full set, to which the same tests then apply.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from blip_fast.config import BlipConfig

Model = TypeVar("Model", bound=nn.Module)
FOLDER = Path(os.environ.get("BLIP_FAST_GOLDEN", Path(__file__).parent))


@functools.cache
def load(case: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors of a case by name, and its sidecar. Both are shared between tests: do not change them."""
    return load_file(FOLDER / f"{case}.safetensors"), json.loads((FOLDER / f"{case}.json").read_text())


def require(case: str) -> None:
    """Skip the calling test where a case is not part of the selection."""
    if not (FOLDER / f"{case}.safetensors").exists():
        pytest.skip(f"golden case {case} is in the full set only (BLIP_FAST_GOLDEN)")


def config(case: str, **overrides: Any) -> BlipConfig:
    """The configuration of a case."""
    _, sidecar = load(case)
    known = {field.name for field in dataclasses.fields(BlipConfig)}
    values = sidecar["config"] | sidecar.get("hyper", {})
    return BlipConfig.from_dict({name: value for name, value in values.items() if name in known} | overrides)


def initial_state(case: str) -> dict[str, Tensor]:
    """The state_dict a case starts from, tied keys included."""
    tensors, sidecar = load(case)
    state = {name.removeprefix("init."): value for name, value in tensors.items() if name.startswith("init.")}
    return state | {alias: state[stored] for alias, stored in sidecar.get("tied_keys", {}).items()}


def build(model_class: Callable[..., Model], case: str, **arguments: Any) -> Model:
    """A model of this class with the configuration and initial state of a case, in eval mode."""
    model = model_class(config(case), **arguments)
    model.load_state_dict(initial_state(case))
    return model.eval()


def with_prefix(case: str, prefix: str) -> dict[str, Tensor]:
    """The tensors whose name starts with ``prefix``, without it; there must be some."""
    found = {name.removeprefix(prefix): t for name, t in load(case)[0].items() if name.startswith(prefix)}
    assert found, f"golden case {case} has no tensor {prefix}*"
    return found


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    actual, expected = actual.detach().double(), expected.double()
    return float((actual - expected).norm() / expected.norm().clamp_min(torch.finfo(torch.float32).tiny))


def assert_gradients(model: nn.Module, case: str, prefix: str, check: str, tolerance: float = 1e-4) -> None:
    """Every stored gradient agrees; those whose true value is zero (sidecar field ``check``) stay small."""
    tiny = load(case)[1][check]["parameters_with_tiny_gradient"]
    parameters = dict(model.named_parameters())
    for name, expected in with_prefix(case, prefix).items():
        grad = parameters[name].grad
        assert grad is not None, f"{name} has no gradient"
        if name in tiny:
            assert grad.abs().max() < 1e-6, f"{name}: gradient {grad.abs().max():.1e} should vanish"
        else:
            error = relative_error(grad, expected)
            assert error < tolerance, f"gradient of {name} is off by {error:.1e}"
