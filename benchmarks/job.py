"""How a file under ``benchmarks/ops`` or ``benchmarks/models`` declares what is to be measured."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import torch

MIN_ROUNDS = 5  # however long they take: of three, a "95 %" interval would hold the true ratio 74 times in 100
ROLES = ("baseline", "ours", "peer")
AIM_OVER = {"memory": "the name of a variant", "items": "None"}


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a run is asked for.

    Attributes:
        device: where it runs.
        quick: the quick set (make ``bench``), or everything and longer.
        dtype: only the cases of this dtype; None: all.
        peers: only the peers whose names contain one of these words; None: all. Baselines stay.
        published: a checkout of the published code, for the benchmark ``published``.
        limited: the whole run has a time limit: cases are timed for as long as quick ones, and what compiles for minutes is
            left out.
    """

    device: torch.device
    quick: bool = True
    dtype: torch.dtype | None = None
    peers: tuple[str, ...] | None = None
    published: Path | None = None
    limited: bool = False

    @property
    def seconds(self) -> float:
        """Time budget for the timing of one case, shared by its variants."""
        short = self.quick or self.limited
        if self.device.type == "cuda":  # steadier than a CPU
            return 2.0 if short else 6.0
        return 4.0 if short else 20.0

    @property
    def replay_seconds(self) -> float:
        """Time budget for the replays of a case's CUDA graphs, which the host does not disturb."""
        return self.seconds / 4

    def select(self, case: Case) -> Case | None:
        """The case with the peers that were asked for; None where its dtype was not."""
        if self.dtype not in (None, case.dtype):
            return None
        variants = [variant for variant in case.variants if variant.role != "peer" or self._wants(variant.name)]
        names = {variant.name for variant in variants}
        return dataclasses.replace(
            case, variants=variants, aims=[aim for aim in case.aims if aim.over in {None} | names]
        )

    def _wants(self, peer: str) -> bool:
        return self.peers is None or any(word.lower() in peer.lower() for word in self.peers)


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to do the job.

    ``run(*inputs)`` does it and returns what is to be compared: a tensor or a nesting of tuples, lists and dicts of
    tensors. A job done in place returns the tensors it wrote. ``context`` is entered around each call, outside the
    timed region. A variant that cannot run here has ``unavailable`` set to the reason, and is listed with it.
    ``cuda_graph``: on a GPU, time the replay of a CUDA graph of the call as well; only for a call that leaves its inputs
    where they are in memory and does not read back to the host.
    ``weigh``: the call whose peak memory is measured, where that is not ``run``.
    """

    name: str
    run: Callable[..., Any]
    role: Literal["baseline", "ours", "peer"] = "peer"
    context: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext
    unavailable: str | None = None
    cuda_graph: bool = False
    weigh: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"variant '{self.name}' has the role '{self.role}'; expected one of {', '.join(ROLES)}")


@dataclasses.dataclass(frozen=True)
class Aim:
    """What the fastest available variant of the role ``ours`` is to reach.

    Of ``speed``: with ``over``, at least ``at_least`` times the speed of the variant of that name; without, at least that
    share of the machine's limit. Of ``memory``: the peak memory of ``over`` is at least ``at_least`` times ours. Of
    ``items``: at least that many items of the case per second.
    """

    at_least: float
    over: str | None = None
    of: Literal["speed", "memory", "items"] = "speed"

    def __post_init__(self) -> None:
        if (self.of == "memory" and self.over is None) or (self.of == "items" and self.over is not None):
            raise ValueError(f"an aim of {self.of} has over={self.over!r}; expected {AIM_OVER[self.of]}")

    @property
    def of_limit(self) -> bool:
        """Whether it is a share of the machine's limit."""
        return self.over is None and self.of == "speed"


@dataclasses.dataclass(frozen=True)
class Case:
    """One job at one size, and the variants that do it.

    ``inputs(seed)`` makes one set of inputs (a tuple). Enough sets are made to overflow the last-level cache, unless
    ``input_sets`` says how many. Every variant's answer, from equal inputs, is compared with ``truth(*inputs)`` (in
    float64, where that means something) or else with the baseline's answer: ``||answer - truth|| <= tolerance * ||truth||``
    for each tensor.
    ``flops`` and ``bytes`` are what the job must do: the fewest operations, and each input read once and each output
    written once. ``dtype`` names the matrix-product rate that ``flops`` are held against. ``items`` is what a call gets
    done, such as ``(75, "pairs")``; the table then has a column of pairs per second.
    ``size``: for a case of a sweep, the quantity that varies and its value, such as ``("queue", 57600)``.
    """

    name: str
    inputs: Callable[[int], tuple[Any, ...]]
    variants: Sequence[Variant]
    tolerance: float
    truth: Callable[..., Any] | None = None
    flops: float = 0
    bytes: float = 0
    dtype: torch.dtype = torch.float32
    aims: Sequence[Aim] = ()
    items: tuple[int, str] | None = None
    input_sets: int | None = None
    size: tuple[str, float] | None = None

    def __post_init__(self) -> None:
        names = [variant.name for variant in self.variants]
        baselines = [variant.name for variant in self.variants if variant.role == "baseline"]
        if len(set(names)) != len(names):
            raise ValueError(f"case '{self.name}' has two variants of one name among {names}; names must differ")
        if len(baselines) != 1:
            raise ValueError(f"case '{self.name}' has {len(baselines)} variants of role 'baseline'; expected one")
        for aim in self.aims:
            if aim.over is not None and aim.over not in names:
                raise ValueError(f"case '{self.name}' has an aim over '{aim.over}'; its variants are {names}")
            if aim.of == "items" and self.items is None:
                raise ValueError(f"case '{self.name}' has an aim of items per second; expected items, got None")

    @property
    def baseline(self) -> Variant:
        """The variant that the others are compared with."""
        return next(variant for variant in self.variants if variant.role == "baseline")
