"""Cases from declaration to result: wrong, failing and absent variants, aims, input sets."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from blip_fast.benchmarks import harness, timing
from blip_fast.benchmarks.check import answer_error, check_variants
from blip_fast.benchmarks.job import MIN_ROUNDS, Aim, Case, Setting, Variant
from blip_fast.benchmarks.limits import Limits
from blip_fast.benchmarks.results import Row
from blip_fast.benchmarks.table import describe_aim
from tests.benchmarks.common import CPU, SETTING, Hurried, double, inputs, small_case

LIMITS = Limits(gemm_rate=1e11, copy_bandwidth=1e10, update_bandwidth=1e10)


class FixedLimits:
    def measure(self, dtype, flops, bytes):
        return LIMITS


def run(case: Case):
    result = harness.run_case("small", case, SETTING, FixedLimits())
    return result, {row.variant: row for row in result.rows}


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    monkeypatch.setattr(timing.time_interleaved, "__defaults__", (timing.MIN_ROUNDS, 20))


def test_a_right_variant_is_measured():
    result, rows = run(small_case())
    ours = rows["ours"]
    assert [row.status for row in result.rows] == ["ok", "ok"]
    assert ours.error == 0.0
    assert ours.time.runs == 20
    assert 0 < ours.time.q20_s <= ours.time.median_s <= ours.time.q80_s
    assert ours.speedup.value == pytest.approx(rows["x + x"].time.median_s / ours.time.median_s)
    assert ours.bandwidth == pytest.approx(8000 / ours.time.median_s)
    assert ours.limit_share == pytest.approx(8000 / 1e10 / ours.time.median_s)
    assert rows["x + x"].speedup.value == 1.0


def test_a_wrong_a_failing_and_an_absent_variant_have_no_time():
    def fails(x):
        raise RuntimeError("no luck")

    _, rows = run(
        small_case(
            Variant("off", lambda x: 2.001 * x),
            Variant("not a number", lambda x: 2 * x * float("nan")),
            Variant("other shape", lambda x: (2 * x)[:-1]),
            Variant("fails", fails),
            Variant("peer", fails, unavailable="peer is not installed"),
        )
    )
    assert rows["off"].status == "wrong"
    assert rows["off"].error == pytest.approx(5e-4, rel=1e-2)
    assert rows["not a number"].status == "wrong"
    assert rows["not a number"].error is None
    assert rows["other shape"].status == "failed"
    assert "no luck" in rows["fails"].reason
    assert rows["peer"].status == "unavailable"
    assert rows["peer"].reason == "peer is not installed"
    for name in ("off", "not a number", "other shape", "fails", "peer"):
        assert rows[name].time is None
        assert rows[name].speedup is None
        assert rows[name].peak_extra_bytes is None
    assert rows["ours"].status == "ok"
    assert rows["ours"].time is not None


def test_nothing_is_compared_with_a_wrong_baseline():
    case = small_case(truth=lambda x: x.double() * 3)
    _, rows = run(case)
    assert {row.status for row in rows.values()} == {"wrong"}


def test_the_float64_truth_decides_where_there_is_one():
    case = small_case(Variant("half", lambda x: (2 * x.half()).float()), truth=lambda x: 2 * x.double())
    _, rows = run(case)
    assert rows["ours"].status == "ok"
    assert rows["half"].status == "wrong"


def test_jobs_in_place_are_checked_on_equal_fresh_inputs():
    case = small_case(Variant("in place", lambda x: x.mul_(2)), truth=lambda x: 2 * x.double())
    result, _ = run(case)
    assert {row.status for row in result.rows} == {"ok"}


def test_a_variant_that_leaves_its_answer_to_the_inputs_of_another_is_caught():
    first: list[torch.Tensor] = []

    def remembers(x):
        first.append(2 * x)
        return first[0]

    _, rows = run(small_case(Variant("remembers", remembers)))
    assert rows["remembers"].status == "wrong"


def test_answers_are_nestings_of_tensors():
    truth = {"a": [torch.ones(3), torch.zeros(2)], "b": torch.tensor([4, 5])}
    answer = {"a": [torch.ones(3), torch.full((2,), 0.25)], "b": torch.tensor([4, 5])}
    relative, largest = answer_error(answer, truth)
    assert relative == pytest.approx(0.25 * math.sqrt(2))
    assert largest == 0.25
    with pytest.raises(ValueError, match="shapes"):
        answer_error([torch.ones(3)], truth)


def test_a_broken_truth_fails_every_variant():
    rows = check_variants(small_case(truth=lambda x: x.no_such_method()), small_case().variants)
    assert {row.status for row in rows.values()} == {"failed"}
    assert "no_such_method" in rows["ours"].reason


@pytest.mark.parametrize(
    ("aim", "verdict"),
    [
        (Aim(1.5, over="x + x"), "met"),
        (Aim(2.5, over="x + x"), "missed"),
        (Aim(2.0, over="x + x"), "within noise"),
        (Aim(0.3), "met"),
        (Aim(0.5), "missed"),
        (Aim(1.0, over="peer"), "not measured"),
    ],
)
def test_aims_are_judged_by_the_whole_interval(aim, verdict):
    peer = Variant("peer", double, unavailable="peer is not installed")
    slow = Variant("ours, slower", double, role="ours")
    case = small_case(peer, slow, bytes=4e9)  # a floor of 0.4 s
    noise = np.random.default_rng(0).lognormal(0, 0.02, (3, 50))
    times = zip(("x + x", "ours", "ours, slower"), noise * np.array([[2.0], [1.0], [3.0]]), strict=True)
    result = harness.judge_aim(aim, case, {name: harness.Measurement(row) for name, row in times}, LIMITS)
    assert result.verdict == verdict
    assert result.variant == (None if verdict == "not measured" else "ours")


def test_the_limit_is_held_against_replays_of_graphs():
    """Where the host takes longer for a call than the device."""
    case = small_case(bytes=4e9)  # a floor of 0.4 s
    calls, replays = np.full(5, 2.0), np.full(5, 0.5)
    right = {"x + x": harness.Measurement(calls), "ours": harness.Measurement(calls, replays=replays)}
    for aim, reached in ((Aim(0.7), 0.8), (Aim(1.0, over="x + x"), 1.0)):
        result = harness.judge_aim(aim, case, right, LIMITS)
        assert (result.verdict, result.reached.value) == ("met", pytest.approx(reached))
    row = harness._with_times(Row("ours", "ours", "ok"), right, case, LIMITS)
    assert (row.limit_share, row.graph_median_s, row.time.median_s) == (pytest.approx(0.8), 0.5, 2.0)


def test_an_aim_without_one_of_our_variants_is_not_measured():
    right = {"x + x": harness.Measurement(np.ones(5))}
    assert harness.judge_aim(Aim(1.0), small_case(), right, LIMITS).verdict == "not measured"


@pytest.mark.parametrize(
    ("aim", "reached", "verdict"),
    [
        (Aim(1.5, over="x + x", of="memory"), 2.0, "met"),
        (Aim(2.5, over="x + x", of="memory"), 2.0, "missed"),
        (Aim(30.0, of="items"), 40.0, "met"),
        (Aim(50.0, of="items"), 40.0, "missed"),
    ],
)
def test_aims_of_memory_and_of_items_per_second(aim, reached, verdict):
    right = {"x + x": harness.Measurement(np.ones(5), 2000), "ours": harness.Measurement(np.full(5, 0.1), 1000)}
    result = harness.judge_aim(aim, small_case(items=(4, "images")), right, LIMITS)
    assert result.reached.value == pytest.approx(reached)
    assert (result.verdict, result.of) == (verdict, aim.of)
    wanted = {"memory": "of the memory of x + x", "items": "images/s"}[aim.of]
    assert wanted in describe_aim(result, (4, "images"))


def test_an_aim_of_memory_without_a_count_is_not_measured():
    right = {name: harness.Measurement(np.ones(5)) for name in ("x + x", "ours")}
    aim = Aim(1.5, over="x + x", of="memory")
    assert harness.judge_aim(aim, small_case(), right, LIMITS).verdict == "not measured"


def test_memory_is_that_of_the_call_to_be_weighed(monkeypatch):
    weighed = []
    monkeypatch.setattr(harness, "peak_extra_bytes", lambda call, device: len(call()))
    case = small_case(Variant("heavy", double, weigh=lambda x: weighed.append("x") or x[:7]))
    _, rows = run(case)
    assert rows["heavy"].peak_extra_bytes == 7
    assert rows["ours"].peak_extra_bytes == 1000
    assert weighed == ["x"]


def test_a_graph_that_cannot_be_captured_is_reported(monkeypatch):
    def refuse(variant, inputs):
        raise RuntimeError("operation not permitted\nwhen the stream is capturing")

    monkeypatch.setattr(harness, "capture_cuda_graph", refuse)
    graphs, failures = harness._capture([Variant("ours", double, cuda_graph=True)], (), torch.device("cuda"))
    assert (graphs, failures) == ([], {"ours": "operation not permitted"})


def test_input_sets_overflow_the_cache(monkeypatch):
    monkeypatch.setattr(harness.environment, "last_level_cache_bytes", lambda device: 10_000)
    sets = harness.make_input_sets(small_case(input_sets=None), CPU)
    assert len(sets) == 10  # 4 x 10,000 bytes in sets of 4,000
    assert not torch.equal(sets[0][0], sets[1][0])
    monkeypatch.setattr(harness.environment, "last_level_cache_bytes", lambda device: 1 << 30)
    assert len(harness.make_input_sets(small_case(input_sets=None), CPU)) == harness.MAX_INPUT_SETS


def test_declarations_are_checked():
    with pytest.raises(ValueError, match="role"):
        Variant("x", double, role="best")
    with pytest.raises(ValueError, match="baseline"):
        small_case(Variant("second", double, role="baseline"))
    with pytest.raises(ValueError, match="one name"):
        small_case(Variant("ours", double))
    with pytest.raises(ValueError, match="'nobody'"):
        small_case(aims=(Aim(1.0, over="nobody"),))
    with pytest.raises(ValueError, match="expected the name of a variant"):
        Aim(1.0, of="memory")
    with pytest.raises(ValueError, match="expected None"):
        Aim(1.0, over="ours", of="items")
    with pytest.raises(ValueError, match="expected items"):
        small_case(aims=(Aim(1.0, of="items"),))
    assert dataclasses.is_dataclass(small_case())
    assert inputs(0)[0].shape == (1000,)


def test_rounds_are_enough_for_an_interval_however_long_they_take():
    result = harness.run_case("small", small_case(), Hurried(CPU), FixedLimits())
    assert [row.time.runs for row in result.rows] == [MIN_ROUNDS, MIN_ROUNDS]


@pytest.mark.parametrize(("quick", "limited", "seconds"), [(True, False, 2), (False, False, 6), (False, True, 2)])
def test_a_case_is_timed_for_shorter_where_the_whole_run_has_a_time_limit(quick, limited, seconds):
    setting = Setting(torch.device("cuda"), quick, limited=limited)
    assert (setting.seconds, setting.replay_seconds) == (seconds, seconds / 4)
