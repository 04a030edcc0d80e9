"""The JSON document: round trip, strictness, privacy."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest

from blip_fast.benchmarks import environment, harness, results, timing
from blip_fast.benchmarks.job import Aim, Variant
from blip_fast.benchmarks.limits import Limits
from tests.benchmarks.common import CPU, SETTING, double, small_case


@pytest.fixture(scope="module")
def measured():
    class FixedLimits:
        def measure(self, dtype, flops, bytes):
            return Limits(1e11, 1e10, 1e10)

    peer = Variant("peer", double, unavailable=f"no library in {environment.REPOSITORY}/lib")
    case = small_case(peer, aims=(Aim(0.5), Aim(1.0, over="peer"), Aim(1.0, of="items")), items=(1000, "numbers"))
    document = dataclasses.replace(results.new_document(CPU, quick=True), tests_passed=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing.time_interleaved, "__defaults__", (timing.MIN_ROUNDS, 10))
        document.cases.append(harness.run_case("small", case, SETTING, FixedLimits()))
    return document


@pytest.fixture
def document(measured):
    return copy.deepcopy(measured)


def test_round_trip(document, tmp_path):
    path = tmp_path / "folder" / "results.json"
    results.write(document, path)
    again = results.read(path)
    row = again.cases[0].rows[2]
    assert row.reason == "no library in blip_fast/lib"  # the one thing that writing changes
    again.cases[0].rows[2] = dataclasses.replace(row, reason=document.cases[0].rows[2].reason)
    assert again == document
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]


def test_the_document_describes_the_run(document):
    assert document.schema == results.SCHEMA
    assert document.device == "cpu"
    assert document.machine["threads"] >= 1
    assert document.machine["memory_bytes"] > 1 << 28
    assert {"python", "torch", "triton", "blip_fast"} <= set(document.versions)
    assert not document.failed


def test_no_paths_of_this_machine_are_written(document, tmp_path):
    path = tmp_path / "results.json"
    results.write(document, path)
    assert str(environment.REPOSITORY) not in path.read_text()


def test_other_files_are_refused(document, tmp_path):
    path = tmp_path / "results.json"
    results.write(document, path)
    values = json.loads(path.read_text())
    for change, complaint in [
        ({"schema": 99}, "schema 99"),
        ({"surprise": 1}, "surprise"),
        ({"cases": [{"benchmark": "x"}]}, "CaseResult"),
    ]:
        path.write_text(json.dumps(values | change))
        with pytest.raises(ValueError, match=complaint):
            results.read(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        results.read(path)
    path.write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match=f"{path.name} is not JSON"):
        results.read(path)


def test_not_a_number_is_refused(document, tmp_path):
    broken = dataclasses.replace(document, machine={"threads": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        results.write(broken, tmp_path / "results.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("status", ["wrong", "failed"])
def test_a_bad_row_fails_the_document(document, status):
    document.cases[0].rows[0] = dataclasses.replace(document.cases[0].rows[0], status=status)
    assert document.failed
    assert dataclasses.replace(document, cases=[], failures=["broken"]).failed
