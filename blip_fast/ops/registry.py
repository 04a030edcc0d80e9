"""Which implementation of an operation runs: definition of operations, registration and choice of backends.

An operation is defined once (schema, fake kernel, autograd, FLOP formula) under ``torch.ops.blip_fast``. Its backends are
plain functions; the registered kernel picks one of them at run time, so that the choice never ends up in a compiled graph.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from blip_fast import native

BACKENDS = ("reference", "cpu", "triton", "cuda")
# Fastest first; an operation may state another order where its measurements say so.
PREFERENCE = {"cpu": ("cpu", "reference"), "cuda": ("triton", "cuda", "reference")}
LIBRARY = torch.library.Library("blip_fast", "FRAGMENT")
OPERATIONS: dict[str, Operation] = {}

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@dataclasses.dataclass(frozen=True)
class Backend:
    """One implementation: what it computes with, the dtypes that it takes (None: all), and why it refuses other inputs."""

    load: Callable[[], Callable[..., Any]]
    dtypes: tuple[torch.dtype, ...] | None = None
    refuses: Callable[..., str | None] = lambda *tensors: None


class Operation:
    """An operation ``torch.ops.blip_fast.<name>`` and its backends."""

    def __init__(self, schema: str, fake: Callable[..., Any], preference: dict[str, tuple[str, ...]] | None = None):
        self.name = schema.split("(", 1)[0]
        self.backends: dict[str, Backend] = {}
        self.preference = PREFERENCE | (preference or {})
        LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        LIBRARY.impl(self.name, self._run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"blip_fast::{self.name}", fake, lib=LIBRARY)
        self.call = getattr(torch.ops.blip_fast, self.name).default
        arguments = enumerate(self.call._schema.arguments)
        self.written = [
            i for i, argument in arguments if argument.alias_info is not None and argument.alias_info.is_write
        ]
        OPERATIONS[self.name] = self

    def add_reference(self, function: Callable[..., Any]) -> None:
        """Plain torch: any device and dtype."""
        self.backends["reference"] = Backend(lambda: function)

    def add_native(self, name: str, dtypes: tuple[torch.dtype, ...] | None = FLOATS) -> None:
        """C++ (``cpu``) or CUDA (``cuda``): ``torch.ops.blip_fast_native.<operation>`` from the compiled library."""
        self.backends[name] = Backend(lambda: getattr(torch.ops.blip_fast_native, self.name).default, dtypes)

    def add_triton(
        self,
        target: str,
        dtypes: tuple[torch.dtype, ...] | None = FLOATS,
        refuses: Callable[..., str | None] = lambda *tensors: None,
    ) -> None:
        """Triton: ``module:function`` under ``blip_fast.kernels``, imported at the first call."""
        module, function = target.split(":")

        @functools.cache
        def load() -> Callable[..., Any]:
            return _on_their_device(getattr(importlib.import_module(f"blip_fast.kernels.{module}"), function))

        self.backends["triton"] = Backend(load, dtypes, refuses)

    def add_autograd(
        self, backward: Callable[..., Any], setup_context: Callable[..., None], differentiable: bool = False
    ) -> None:
        """Gradient formula, as `torch.library.register_autograd` takes it; whether it can be differentiated again.

        Not by that function, whose wrapper of a call costs the host 20 to 40 us: it asks for the schema's arguments one by one.
        """

        def forward(ctx: Any, *args: Any) -> Any:
            output = below_autograd(*args)
            setup_context(ctx, args, output)
            return output

        def once(ctx: Any, *gradients: Any) -> Any:
            if torch.is_grad_enabled():
                raise RuntimeError(f"{self.name} has no second derivative; expected backward without create_graph=True")
            return backward(ctx, *gradients)

        def forward_mode(ctx: Any, *tangents: Any) -> Any:
            raise RuntimeError(f"{self.name} has no forward-mode derivative; expected reverse mode (backward)")

        def below_autograd(*args: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                return self.call(*args)

        formulas = {"forward": forward, "backward": backward if differentiable else once, "jvp": forward_mode}
        members = {name: staticmethod(formula) for name, formula in formulas.items()}
        recorded: Any = type(f"blip_fast_{self.name}", (torch.autograd.Function,), members)  # the name of grad_fn

        def run(*args: Any) -> Any:
            needed = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in _tensors(args))
            if needed or forward_ad._current_level >= 0:  # in forward mode, so that no tangent is lost in silence
                return recorded.apply(*args)
            return below_autograd(*args)

        LIBRARY.impl(self.name, run, "Autograd")

    def add_autocast(self) -> None:
        """Under autocast, cast floating-point tensors to its dtype. Without this, inputs keep their dtypes there."""
        for device in ("cpu", "cuda"):
            LIBRARY.impl(self.name, functools.partial(self._autocast, device), f"Autocast{device.upper()}")

    def _autocast(self, device: str, *args: Any) -> Any:
        dtype = torch.get_autocast_dtype(device)

        def cast(arg: Any) -> Any:
            eligible = isinstance(arg, torch.Tensor) and arg.is_floating_point() and arg.dtype != torch.float64
            return arg.to(dtype) if eligible else arg

        key = getattr(torch._C.DispatchKey, f"Autocast{device.upper()}")
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            return self.call(*map(cast, args))

    def add_flops(self, formula: Callable[..., int]) -> None:
        """FLOPs from the arguments' shapes, for `torch.utils.flop_counter.FlopCounterMode`."""
        register_flop_formula(getattr(torch.ops.blip_fast, self.name))(formula)

    def unavailable(self, backend: str) -> str | None:
        """None if ``backend`` can run this operation on this machine, else the reason why it cannot."""
        if backend not in self.backends:
            return f"{self.name} has no {backend} implementation"
        if backend == "reference":
            return None
        return _triton_unavailable() if backend == "triton" else self._native_unavailable(backend)

    def forced(self) -> str | None:
        """The backend that `backend` or the environment forces for this operation, or for the one whose gradient it is."""
        return _forced.get(self.name) or _forced.get(self.name.removesuffix("_backward")) or _forced.get("*")

    def select(self, tensors: list[torch.Tensor]) -> str:
        """Name of the backend for these inputs: the forced one, or else the fastest that takes them.

        Raises:
            RuntimeError: the forced backend cannot serve the call; the sentence says what is missing.
        """
        forced = self.forced()
        if forced is not None:
            if reason := self._refusal(forced, tensors):
                raise RuntimeError(f"backend '{forced}' cannot run {self.name}: {reason}")
            return forced
        device = tensors[0].device.type if tensors else "cpu"
        order = self.preference.get(device, ("reference",))
        return next(name for name in order if not self._refusal(name, tensors))

    def resolve(self, *tensors: torch.Tensor) -> Callable[..., Any]:
        """The function of the backend for these inputs, for loops that call it often: no autograd, autocast or tracing."""
        return self.backends[self.select(list(tensors))].load()

    def _refusal(self, backend: str, tensors: list[torch.Tensor]) -> str | None:
        if reason := self.unavailable(backend):
            return reason
        served = _devices(backend)
        dtypes = self.backends[backend].dtypes
        for device, dtype in {(tensor.device, tensor.dtype) for tensor in tensors}:  # a model's list is long
            if served and device.type not in served:
                return f"it needs {' or '.join(served)} tensors, got one on '{device}'"
            if dtypes and dtype.is_floating_point and dtype not in dtypes:
                return f"it takes {', '.join(str(d) for d in dtypes)}, got {dtype}"
        return self.backends[backend].refuses(*tensors)

    def _native_unavailable(self, backend: str) -> str | None:
        if reason := native.load_error():
            return reason
        if backend == "cuda" and not torch.cuda.is_available():
            return "no CUDA device is available"
        if not _has_native_kernel(self.name, backend.upper()):
            return f"the library was built without {backend.upper()} code"
        return None

    def _run(self, *args: Any) -> Any:
        result = self.backends[self.select(_tensors(args))].load()(*args)
        for i in self.written:  # kernels write behind autograd's back
            torch.autograd.graph.increment_version(args[i])
        return result


@functools.cache
def _has_native_kernel(operation: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"blip_fast_native::{operation}", key)


def _tensors(args: tuple[Any, ...]) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for arg in args:
        if isinstance(arg, torch.Tensor):
            found.append(arg)
        elif isinstance(arg, (list, tuple)):
            found.extend(item for item in arg if isinstance(item, torch.Tensor))
    return found


def _on_their_device(launch: Callable[..., Any]) -> Callable[..., Any]:
    """Triton launches on the current device, whichever the tensors are on."""

    def run(*args: Any) -> Any:
        with torch.cuda.device_of(_tensors(args)[0]):
            return launch(*args)

    return run


def interpreting() -> bool:
    """True where Triton kernels run in the interpreter (``TRITON_INTERPRET=1``, set before the first import)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def autocast_enabled(device: torch.device) -> bool:
    """Whether autocast is on for this device; "meta" has none, and torch refuses to say so."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def _triton_unavailable() -> str | None:
    try:
        import triton  # noqa: F401
    except ImportError:
        return "triton is not installed"
    if interpreting() or torch.cuda.is_available():
        return None
    return "no CUDA device is available (TRITON_INTERPRET=1 runs the kernels slowly on the CPU)"


def _devices(backend: str) -> tuple[str, ...]:
    if backend == "triton":
        return ("cpu", "cuda") if interpreting() else ("cuda",)
    return {"cpu": ("cpu",), "cuda": ("cuda",)}.get(backend, ())


def _check_backend(name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"backend '{name}' is unknown; expected one of {', '.join(BACKENDS)}")
    return name


def _from_environment(value: str) -> dict[str, str]:
    """``BLIP_FAST_BACKEND``: a backend for all operations, or ``operation=backend`` pairs, separated by commas."""
    forced = {}
    for item in filter(None, (part.strip() for part in value.split(","))):
        operation, _, name = item.rpartition("=")
        forced[operation or "*"] = _check_backend(name)
    return forced


def check_environment() -> None:
    """ValueError where ``BLIP_FAST_BACKEND`` names an operation that there is not; for when all are registered."""
    for operation in _forced.keys() - {"*"}:
        if operation not in OPERATIONS:
            raise ValueError(f"BLIP_FAST_BACKEND: {_unknown_operation(operation)}")


def _unknown_operation(name: str) -> str:
    return f"operation '{name}' is unknown; expected one of {', '.join(sorted(OPERATIONS))}"


# Process-wide, like torch's own backend switches: backward passes run in threads of their own and must see it.
_forced: dict[str, str] = _from_environment(os.environ.get("BLIP_FAST_BACKEND", ""))


@contextlib.contextmanager
def backend(name: str, *, op: str | None = None) -> Iterator[None]:
    """Force one backend inside a ``with`` block, for all operations or only for ``op`` and its gradient.

    For the whole process: blocks in two threads must not overlap.

    Args:
        name: ``"reference"``, ``"cpu"``, ``"triton"`` or ``"cuda"``.
        op: name of a single operation, e.g. ``"contrastive_loss"``; None for all.

    Raises:
        ValueError: the backend or the operation is unknown.
    """
    if op is not None and op not in OPERATIONS:
        raise ValueError(_unknown_operation(op))
    key = op or "*"
    before = dict(_forced)
    if op is None:
        _forced.clear()
    _forced[key] = _check_backend(name)
    try:
        yield
    finally:
        _forced.clear()
        _forced.update(before)


def backends() -> dict[str, dict[str, str | None]]:
    """For each operation and backend: None where it can run on this machine, else the reason why not."""
    return {name: {b: operation.unavailable(b) for b in BACKENDS} for name, operation in sorted(OPERATIONS.items())}
