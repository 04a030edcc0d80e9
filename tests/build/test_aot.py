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

REPORT = Path(__file__).parents[2] / "benchmarks" / "results" / "aot.json"
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


def test_the_deviation_of_a_row_is_rounded_to_nearest():
    """As eager's; the interpreter, which has no approximate functions, cannot tell."""
    kernels = [s for _, s in specimens() if s.name == "dropout_add_layer_norm_fwd_kernel"]
    for specimen in kernels:
        lowered = lower_specimen(specimen, 90)
        assert "math.sqrt" not in lowered
        assert lowered.count("tt.precise_sqrt") == 1
        assert lowered.count("tt.precise_divf") == 2
    assert kernels


@pytest.mark.parametrize("batch", [16, 75])
def test_keys_in_fp32_fit_where_shared_memory_is_small(batch):
    found = {s.label: s for operation, s in specimens() if operation == "contrastive"}
    small = found[f"batch {batch}, E 256, features bf16, queue fp32, stages 2"]
    assert compile_specimen(small, 89).shared <= LIMITS[89]["shared_per_block"]


def test_nothing_else_needs_more_than_a_small_gpu_has():
    rows, most = json.loads(REPORT.read_text())["kernels"], LIMITS[89]["shared_per_block"]
    large = {(row["kernel"], row["label"]) for row in rows if row["arch"] == 80 and row["shared"] > most}
    of_fp32_queues = [f"batch {batch}, E 256, features bf16, queue fp32, stages 3" for batch in (16, 75)]
    assert large == {("contrastive_sweep_kernel", label) for label in of_fp32_queues}


def test_the_committed_report_has_every_kernel():
    rows = json.loads(REPORT.read_text())["kernels"]
    reported = {(row["operation"], row["kernel"], row["label"], row["arch"]) for row in rows}
    expected = {(operation, s.name, s.label, arch) for operation, s in specimens() for arch in ARCHS}
    assert reported == expected, "run `python -m blip_fast.benchmarks.aot --json benchmarks/results/aot.json`"
    assert not any(row["spills"] for row in rows)
