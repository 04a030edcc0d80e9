"""`blip-fast bench compare`: what counts as worse."""

from __future__ import annotations

import dataclasses

import pytest
from click.testing import CliRunner

from blip_fast.benchmarks.compare import changes, lost
from blip_fast.benchmarks.results import write
from blip_fast.benchmarks.stats import Summary
from blip_fast.cli import main
from tests.benchmarks.common import document_of


def changed(document, *, time=1.0, memory=1.0, spread=0.01, role="ours"):
    """The document with the variants of ``role`` slower by the factor ``time``, and hungrier by ``memory``."""

    def row(old):
        if old.role != role:
            return old
        median = 1e-3 * time
        summary = Summary(median, median * (1 - spread), median * (1 + spread), 9)
        return dataclasses.replace(old, time=summary, peak_extra_bytes=int(memory * 2**24))

    cases = [dataclasses.replace(case, rows=[row(old) for old in case.rows]) for case in document.cases]
    return dataclasses.replace(document, cases=cases)


@pytest.fixture(scope="module")
def before():
    return changed(document_of())


@pytest.mark.parametrize(
    ("options", "worse"),
    [
        ({"time": 1.3}, True),
        ({"time": 1.05}, False),
        ({"time": 0.5}, False),
        ({"time": 1.3, "spread": 0.5}, False),  # the runs overlap
        ({"memory": 1.3}, True),
        ({"memory": 1.05}, False),
    ],
)
def test_what_is_worse(before, options, worse):
    (change,) = changes(before, changed(before, **options))
    assert change.worse(0.1) == worse
    assert change.name.endswith("ours")


def test_little_memory_is_noise(before):
    (change,) = changes(changed(before, memory=0.01), changed(before, memory=0.05))
    assert change.memory is None
    assert not change.worse(0.1)


def test_a_variant_that_is_gone_is_named(before):
    cases = [dataclasses.replace(case, rows=[row for row in case.rows if row.role != "ours"]) for case in before.cases]
    without = dataclasses.replace(before, cases=cases)
    assert [name.split(": ")[-1] for name in lost(before, without)] == ["ours"]
    assert lost(before, dataclasses.replace(before, cases=[])) == []  # cases that did not run are no loss


@pytest.mark.parametrize(("time", "code"), [(1.0, 0), (1.3, 1)])
def test_the_command_exits_with_1_past_the_threshold(before, tmp_path, time, code):
    files = [tmp_path / "before.json", tmp_path / "after.json"]
    for file, document in zip(files, (before, changed(before, time=time)), strict=True):
        write(document, file)
    done = CliRunner().invoke(main, ["bench", "compare", *map(str, files)])
    assert done.exit_code == code, done.output
    assert f"{time:.3f}" in done.output
    assert CliRunner().invoke(main, ["bench", "compare", *map(str, files), "--threshold", "0.5"]).exit_code == 0


def test_what_failed_in_the_later_run_is_an_error_and_what_differs_is_said(before, tmp_path):
    files = [tmp_path / "before.json", tmp_path / "after.json"]
    machine = {**before.machine, "threads": 4096}
    after = dataclasses.replace(
        before, failures=["other: its process ended with SIGKILL"], machine=machine, quick=False
    )
    for file, document in zip(files, (before, after), strict=True):
        write(document, file)
    done = CliRunner().invoke(main, ["bench", "compare", *map(str, files)])
    assert done.exit_code == 1
    assert "FAILED other: its process ended with SIGKILL" in done.output
    assert "not measured alike: threads is" in done.output
    assert "not measured alike: quick is True before and False after" in done.output


def test_nothing_in_common_is_an_error(before, tmp_path):
    for name, document in (("a", before), ("b", dataclasses.replace(before, cases=[]))):
        write(document, tmp_path / f"{name}.json")
    done = CliRunner().invoke(main, ["bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    assert done.exit_code == 1
    assert "no case in common" in done.output
