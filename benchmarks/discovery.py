"""Finds the benchmarks: every module under ``ops/``, ``models/`` and ``sweeps/`` that has a function ``cases(setting)``."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from .job import Case, Setting

ROOT = Path(__file__).resolve().parent
FOLDERS = ("ops", "models", "sweeps")
DEFAULT_PLACE = 100


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A benchmark file: its name (that of the file), what it says of itself, and its entry point.

    Benchmarks run in the order of their ``place``: the module's ``PLACE``, 1 for the most important.
    """

    name: str
    path: Path
    summary: str
    place: int
    cases: Callable[[Setting], Iterable[Case]]

    @property
    def folder(self) -> str:
        """``ops``, ``models`` or ``sweeps``."""
        return self.path.parent.name


def discover(root: Path = ROOT) -> tuple[list[Benchmark], list[str], list[str]]:
    """The benchmarks under ``root``, most important first; a line for each broken file, and for each that lacks a package."""
    found: list[Benchmark] = []
    broken: list[str] = []
    lacking: list[str] = []
    for path in sorted(path for folder in FOLDERS for path in (root / folder).glob("*.py")):
        try:
            benchmark = load(path)
        except Exception as error:
            line = f"{path.parent.name}/{path.name} cannot be imported: {type(error).__name__}: {error}"
            (lacking if _is_package_that_lacks(error) else broken).append(line)
            continue
        if benchmark is not None:
            found.append(benchmark)
    return sorted(found, key=lambda benchmark: (benchmark.place, benchmark.name)), broken, lacking


def _is_package_that_lacks(error: Exception) -> bool:
    """Whether what cannot be imported is a package of others, which is not installed here."""
    package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    return package not in ("", "blip_fast") and importlib.util.find_spec(package) is None


def load(path: Path) -> Benchmark | None:
    """The benchmark in the file ``path``, or None where the file declares none."""
    path = path.resolve()
    name = f"{__package__}.{path.parent.name}.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path.name} is no Python file; expected a benchmark such as ops/momentum.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    if not hasattr(module, "cases"):
        return None
    summary = (module.__doc__ or path.stem).strip().splitlines()[0]
    return Benchmark(path.stem, path, summary, getattr(module, "PLACE", DEFAULT_PLACE), module.cases)
