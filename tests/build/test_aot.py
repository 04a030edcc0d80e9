"""Every Triton kernel compiles for sm_90 without a GPU, spills nothing and fits; the committed report has the others, too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blip_fast.ops.registry import interpreting

pytest.importorskip("triton")
if interpreting():
    pytest.skip("the interpreter replaces the compiler", allow_module_level=True)

from blip_fast.kernels.aot import ARCHS, LIMITS, compile_specimen, lower_specimen, specimens

SPECIMENS = [pytest.param(s, id=f"{operation}-{s.name}-{s.label}") for operation, s in specimens()]


@pytest.mark.parametrize("specimen", SPECIMENS)
def test_compiles_without_spills(specimen):
    usage = compile_specimen(specimen, 90)
    assert usage.spills == 0
    assert 0 < usage.registers <= 255
    assert usage.shared <= LIMITS[90]["shared_per_block"]
    assert usage.occupancy > 0


@pytest.mark.parametrize("specimen", SPECIMENS)
def test_an_integer_may_be_one(specimen):
    integers = [name for name, kind in specimen.signature.items() if kind in ("i32", "i64")]
    for name in integers:
        assert lower_specimen(specimen, 90, (name,))
    assert lower_specimen(specimen, 90, tuple(integers))


def test_the_committed_report_has_every_kernel():
    rows = json.loads((Path(__file__).parents[2] / "benchmarks" / "results" / "aot.json").read_text())["kernels"]
    reported = {(row["operation"], row["kernel"], row["label"], row["arch"]) for row in rows}
    expected = {(operation, s.name, s.label, arch) for operation, s in specimens() for arch in ARCHS}
    assert reported == expected, "run `python -m blip_fast.benchmarks.aot --json benchmarks/results/aot.json`"
    assert not any(row["spills"] for row in rows)
