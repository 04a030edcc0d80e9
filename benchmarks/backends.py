"""Variants for the backends of a blip_fast operation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

import blip_fast

from .job import Variant

# The backends that are meant for a device. Triton's interpreter runs on a CPU too, but only to be tested.
BACKENDS_OF_DEVICE = {"cpu": ("reference", "cpu"), "cuda": ("reference", "triton", "cuda")}


def backend_variants(
    operation: str, run: Callable[..., Any], device: torch.device, cuda_graph: bool = False
) -> list[Variant]:
    """One variant ``blip_fast <backend>`` per backend of ``operation``; one that cannot run here gives its reason.

    ``run`` calls the operation; the backend is forced around it. The reference backend has the role ``peer``.
    """
    reasons = blip_fast.backends()[operation]
    return [
        Variant(
            name=f"blip_fast {backend}",
            run=run,
            role="peer" if backend == "reference" else "ours",
            context=functools.partial(blip_fast.backend, backend),
            unavailable=reasons[backend],
            cuda_graph=cuda_graph and backend != "reference",  # which reads back to the host here and there
        )
        for backend in BACKENDS_OF_DEVICE[device.type]
    ]
