"""The results of a run, and their JSON file."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from blip_fast.checkpoints.files import write_text

from . import environment
from .limits import Limits
from .stats import Interval, Summary

SCHEMA = 3
Verdict = Literal["met", "missed", "within noise", "not measured"]
T = TypeVar("T")
# Caches, too: clouds give processors of several generations one name.
FACTS = ("cpu", "cpus", "caches", "gpu", "threads", "cpu_capability")


@dataclasses.dataclass(frozen=True)
class Row:
    """One variant of one case. Times are seconds; what was not measured is None.

    ``status``: ``ok``; ``unavailable`` (``reason`` says why); ``wrong`` (its answer differs) and ``failed`` (it raised),
    both of which make the run fail. ``error`` is the largest relative error of a tensor of the answer (2-norm),
    ``max_error`` the largest absolute error of an element. ``speedup`` is the baseline's median over this one's.
    ``limit_share`` is the time that the job needs at the machine's limits over the median, of replays if there are any.
    """

    variant: str
    role: str
    status: Literal["ok", "unavailable", "wrong", "failed"]
    reason: str | None = None
    error: float | None = None
    max_error: float | None = None
    time: Summary | None = None
    speedup: Interval | None = None
    graph_median_s: float | None = None
    peak_extra_bytes: int | None = None
    flop_rate: float | None = None
    bandwidth: float | None = None
    limit_share: float | None = None


@dataclasses.dataclass(frozen=True)
class AimResult:
    """How the fastest of our variants stands to an aim; ``reached`` is the ratio, the share of the limit, or the rate."""

    at_least: float
    over: str | None
    of: str
    verdict: Verdict
    variant: str | None = None
    reached: Interval | None = None


@dataclasses.dataclass(frozen=True)
class CaseResult:
    """One case: what the job needs, the limits measured in the same run, and a row for each variant.

    ``items``: how many of what a call gets done, such as ``[75, "pairs"]``. ``size``: what varies in a sweep, and its value.
    ``date`` and ``commit`` are those of the measurement: cases of one file may have been measured one after the other.
    """

    benchmark: str
    case: str
    dtype: str
    flops: float
    bytes: float
    tolerance: float
    limits: Limits
    bound: str
    items: tuple[int, str] | None
    size: tuple[str, float] | None
    rows: list[Row]
    aims: list[AimResult]
    date: str
    commit: str | None


@dataclasses.dataclass(frozen=True)
class Document:
    """A results file. ``tests_passed`` is None where the run did not come with a run of the tests.

    ``not_measured``: benchmarks that the time limit left out, or that need a package that is not there; no failures.
    """

    schema: int
    date: str
    commit: str | None
    dirty: bool | None
    device: str
    quick: bool
    tests_passed: bool | None
    machine: dict[str, Any]
    versions: dict[str, str | None]
    cases: list[CaseResult]
    failures: list[str]
    not_measured: list[str] = dataclasses.field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether a benchmark could not run, or a variant raised or gave a wrong answer."""
        return bool(self.failures) or any(row.status in ("wrong", "failed") for case in self.cases for row in case.rows)


def new_document(device: torch.device, quick: bool) -> Document:
    """A document without cases, describing this machine now."""
    commit, dirty = environment.commit()
    machine, versions = environment.machine(device), environment.versions()
    return Document(SCHEMA, environment.now(), commit, dirty, device.type, quick, None, machine, versions, [], [])


def earlier_cases(path: Path, document: Document) -> list[CaseResult]:
    """The cases in the file ``path``, which is to grow by those of ``document``.

    Raises ValueError where the file tells of another machine or setting, whose figures must not stand beside these.
    """
    before = read(path)
    for fact, one, other in differences(before, document):
        raise ValueError(f"{path.name} holds results that are not alike: {fact} is {one!r} there and {other!r} here")
    return before.cases


def differences(one: Document, other: Document) -> list[tuple[str, Any, Any]]:
    """What makes the figures of two documents unlike, with its value in each."""
    facts = [(name, one.machine.get(name), other.machine.get(name)) for name in FACTS]
    facts.append(("torch", one.versions.get("torch"), other.versions.get("torch")))
    facts.append(("quick", one.quick, other.quick))
    return [fact for fact in facts if fact[1] != fact[2]]


def merged(before: Sequence[CaseResult], cases: Sequence[CaseResult]) -> list[CaseResult]:
    """``cases`` in place of what ``before`` says of their benchmarks, in the order of ``before``; new benchmarks follow."""
    benchmarks = {case.benchmark for case in cases}
    places = {name: place for place, name in enumerate(dict.fromkeys(case.benchmark for case in before))}
    kept = [case for case in before if case.benchmark not in benchmarks]
    return sorted([*kept, *cases], key=lambda case: places.get(case.benchmark, len(places)))


def write(document: Document, path: Path) -> None:
    """Write ``document`` beside ``path`` and rename, so that a reader never sees half a file.

    Results are meant to be shown around: paths of this machine, which error messages like to contain, are shortened.
    """
    text = json.dumps(dataclasses.asdict(document), indent=1, allow_nan=False) + "\n"
    for folder, name in ((environment.REPOSITORY, "blip_fast"), (sys.prefix, "python"), (Path.home(), "~")):
        text = text.replace(f"{folder}/", f"{name}/")
    write_text(path, text)


def read(path: Path) -> Document:
    """Read a results file. Raises ValueError where it is not of this schema."""
    try:
        values = json.loads(path.read_text())
    except ValueError as error:  # no JSON, or no text
        raise ValueError(f"{path.name} is not JSON: {error}") from error
    schema = values.get("schema") if isinstance(values, dict) else None
    if schema != SCHEMA:
        raise ValueError(f"{path.name} has the schema {schema!r}; expected {SCHEMA}")
    cases = [_case(case) for case in values.get("cases", [])]
    return _build(Document, {"not_measured": [], **values, "cases": cases})  # files from before it came lack the first


def _case(values: Mapping[str, Any]) -> CaseResult:
    rows = [_build(Row, row | _nested(row, time=Summary, speedup=Interval)) for row in values.get("rows", [])]
    aims = [_build(AimResult, aim | _nested(aim, reached=Interval)) for aim in values.get("aims", [])]
    pairs = {name: tuple(values[name]) for name in ("items", "size") if values.get(name) is not None}
    return _build(CaseResult, {**values, **_nested(values, limits=Limits), **pairs, "rows": rows, "aims": aims})


def _nested(values: Mapping[str, Any], **classes: type[Any]) -> dict[str, Any]:
    return {name: _build(cls, values[name]) for name, cls in classes.items() if values.get(name) is not None}


def _build(cls: type[T], values: Mapping[str, Any]) -> T:
    expected = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if set(values) != expected:
        missing, unknown = sorted(expected - set(values)), sorted(set(values) - expected)
        raise ValueError(f"{cls.__name__} in the results file lacks {missing} and has the unknown fields {unknown}")
    return cls(**values)
