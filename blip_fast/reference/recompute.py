"""Activation checkpointing ("Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174): less is kept for backward.

What is not kept is computed again in the backward pass, with the same random numbers, so gradients are the same bits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Recompute = Literal["full", "selective"]
MODES = ("full", "selective")
PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default}
# Parts of the names of other dear operations: attention, torch's, xformers' and ours, and linear layers of ours.
DEAR = ("attention", "flash_fwd", "blip_fast::linear")
T = TypeVar("T")


def recomputed(function: Callable[..., T], *args: Any, mode: Recompute | None, draws: bool = False) -> T:
    """``function(*args)``, of which less is kept for the backward pass.

    Args:
        function: anything without side effects.
        args: its arguments, which are kept.
        mode: "full" keeps nothing else. "selective" keeps the results of linear layers and of fused attention, which are dear
            to compute, and not those of norms, activations, dropout and sums, nor attention scores where they are written out
            (arXiv 2205.05198, section 5). None keeps everything that autograd wants.
        draws: whether the function draws from torch's generators, whose states are then kept, too. That cannot be done
            while a CUDA graph is captured.
    """
    if mode is None or not torch.is_grad_enabled():
        return function(*args)
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": draws}
    if mode == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _keep_what_is_dear)
    return checkpoint(function, *args, **options)


def set_recompute(modules: Iterable[nn.Module], enable: bool, last: int | None, mode: Recompute) -> None:
    """Set ``recompute`` of each module: ``mode`` for the ``last`` ones (None: all) if ``enable``, else None."""
    chosen = list(modules)
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}; expected one of {', '.join(map(repr, MODES))}")
    if last is not None and not 0 <= last <= len(chosen):
        raise ValueError(f"layers={last}; expected a number from 0 to {len(chosen)}, or None for all")
    first = 0 if last is None else len(chosen) - last
    for index, module in enumerate(chosen):
        module.recompute = mode if enable and index >= first else None


def _keep_what_is_dear(context: Any, operation: Any, *args: Any, **options: Any) -> CheckpointPolicy:
    name = operation.name()
    dear = operation in PRODUCTS or (any(part in name for part in DEAR) and "backward" not in name)
    return CheckpointPolicy.MUST_SAVE if dear else CheckpointPolicy.PREFER_RECOMPUTE
