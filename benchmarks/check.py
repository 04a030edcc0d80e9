"""Whether the variants run, and whether their answers are right."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves, tree_map

from .job import Case, Variant
from .results import Row

CHECK_SEED = 1_000_000  # inputs of the check: none that was timed, since jobs done in place wear theirs out


def start_variants(variants: Sequence[Variant], inputs: tuple[Any, ...]) -> dict[str, str]:
    """Call each available variant once, which compiles what it compiles. Returns what went wrong, by variant."""
    failures = {}
    for variant in variants:
        if variant.unavailable is not None:
            continue
        try:
            with variant.context():
                variant.run(*inputs)
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()  # an error on the device belongs to the variant that caused it
        except Exception as error:  # whatever a variant raises, the others are still measured
            failures[variant.name] = f"{type(error).__name__}: {error}"
    return failures


def check_variants(case: Case, variants: Sequence[Variant]) -> dict[str, Row]:
    """Answers of ``variants`` to equal, fresh inputs against the truth: a row each, with status and error."""
    inputs = case.inputs(CHECK_SEED)
    try:
        truth = _truth(case, inputs)
    except Exception as error:
        reason = f"no answer to compare with: {type(error).__name__}: {error}"
        return {variant.name: Row(variant.name, variant.role, "failed", reason) for variant in variants}
    return {variant.name: _check(variant, case.tolerance, inputs, truth) for variant in variants}


def _truth(case: Case, inputs: tuple[Any, ...]) -> Any:
    if case.truth is not None:
        return case.truth(*copy.deepcopy(inputs))
    with case.baseline.context():
        answer = case.baseline.run(*copy.deepcopy(inputs))
    # A copy: gradients belong to the model, and the next variant's context may clear them.
    return tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf, answer)


def _check(variant: Variant, tolerance: float, inputs: tuple[Any, ...], truth: Any) -> Row:
    try:
        with variant.context():
            answer = variant.run(*copy.deepcopy(inputs))
        error, max_error = answer_error(answer, truth)
    except Exception as exception:
        return Row(variant.name, variant.role, "failed", f"{type(exception).__name__}: {exception}")
    if not error <= tolerance:  # NaN is wrong too
        reason = f"its answer is off by {error:.1e}, more than {tolerance:.1e}"
        return Row(variant.name, variant.role, "wrong", reason, _finite(error), _finite(max_error))
    return Row(variant.name, variant.role, "ok", error=error, max_error=max_error)


def answer_error(answer: Any, truth: Any) -> tuple[float, float]:
    """Largest over the tensors of ``||answer - truth|| / ||truth||``, and largest absolute difference of an element.

    Where the truth is all zero its norm counts as 1. Raises ValueError where the tensors do not correspond.
    """
    answers, truths = tree_leaves(answer), tree_leaves(truth)
    shapes, expected_shapes = ([tuple(leaf.shape) for leaf in leaves] for leaves in (answers, truths))
    if shapes != expected_shapes:
        raise ValueError(f"the answer has the shapes {shapes[:4]}; expected {expected_shapes[:4]}")
    relative, largest = [0.0], [0.0]
    for one, other in zip(answers, truths, strict=True):
        expected = other.detach().double()
        difference = one.detach().to(expected.device).double() - expected
        relative.append(float(difference.norm()) / (float(expected.norm()) or 1.0))
        largest.append(float(difference.abs().max()) if difference.numel() else 0.0)
    return float(np.max(relative)), float(np.max(largest))  # np.max keeps NaN, max() may not


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
