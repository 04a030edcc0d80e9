"""``blip-fast bench run`` on benchmark files in a temporary folder."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from click.testing import CliRunner

from blip_fast.benchmarks import results, worker
from blip_fast.benchmarks.discovery import discover
from blip_fast.benchmarks.environment import REPOSITORY
from blip_fast.benchmarks.job import Aim, Setting, Variant
from blip_fast.benchmarks.run import choose
from blip_fast.benchmarks.worker import Outcome
from blip_fast.cli import main
from tests.benchmarks.common import CPU, document_of, double, small_case

HEAD = (
    '"""{summary}"""\nimport os\nfrom blip_fast.benchmarks.job import Case, Variant\n'
    "from tests.benchmarks.common import small_case\n"
)
GOOD = HEAD + "def cases(setting):\n    yield small_case()\n"
WRONG = (
    HEAD
    + "PLACE = 2\ndef cases(setting):\n    peer = Variant('peer', None, unavailable='peer is not installed')\n"
    + "    yield small_case(Variant('wrong', lambda x: 3 * x), peer)\n"
)
KILLED = HEAD + "PLACE = 1\ndef cases(setting):\n    yield small_case()\n    os.kill(os.getpid(), 9)\n"


CASE = document_of().cases[0]


@pytest.fixture
def root(tmp_path):
    (tmp_path / "ops").mkdir()
    return tmp_path


def add(root, name: str, text: str) -> None:
    path = root / f"{name}.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text.format(summary=f"About {path.stem}."))


def test_discovery(root):
    add(root, "ops/good", GOOD)
    add(root, "ops/wrong", WRONG)
    add(root, "models/killed", KILLED)
    add(root, "ops/helper", "VALUE = 1\n")
    add(root, "ops/broken", "import blip_fast.no_such_module\n")
    add(root, "ops/lacking", "import no_such_package\n")
    add(root, "ops/misspelt", "import torch.no_such_part\n")
    found, broken, lacking = discover(root)
    assert [benchmark.name for benchmark in found] == ["killed", "wrong", "good"]  # by their PLACE
    assert found[2].summary == "About good."
    assert len(broken) == 2
    assert "ops/broken.py" in broken[0]
    assert "no_such_module" in broken[0]
    assert "ops/misspelt.py" in broken[1]
    assert len(lacking) == 1
    assert "ops/lacking.py" in lacking[0]
    assert "no_such_package" in lacking[0]


def test_a_wrong_answer_and_a_crash_fail_the_run_and_keep_the_rest(root):
    add(root, "ops/wrong", WRONG)
    add(root, "ops/killed", KILLED)
    json_file = root / "results.json"
    command = [sys.executable, "-c", "from blip_fast.cli import main; main()", "bench", "run", "--device", "cpu"]
    command += ["--root", str(root), "--json", str(json_file)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*command, "--tests-failed"], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1, run.stdout + run.stderr
    document = results.read(json_file)
    assert [case.benchmark for case in document.cases] == ["killed", "wrong"]
    assert document.failures == ["killed: its process ended with SIGKILL"]
    assert document.tests_passed is False
    statuses = {row.variant: row.status for case in document.cases for row in case.rows}
    assert statuses == {"x + x": "ok", "ours": "ok", "wrong": "wrong", "peer": "unavailable"}
    for words in ("peer: unavailable: peer is not installed", "FAILED killed", "FAILED wrong", "did not pass"):
        assert words in run.stdout


def test_a_right_run_ends_well(root, monkeypatch):
    add(root, "ops/good", GOOD)
    monkeypatch.setattr("blip_fast.benchmarks.run.run_in_child", lambda *_: Outcome([CASE]))
    result = CliRunner().invoke(main, ["bench", "run", "--device", "cpu", "--root", str(root)])
    assert result.exit_code == 0, result.output


def test_a_run_of_no_case_fails(root, monkeypatch):
    add(root, "ops/good", GOOD)
    monkeypatch.setattr("blip_fast.benchmarks.run.run_in_child", lambda *_: Outcome())
    result = CliRunner().invoke(main, ["bench", "run", "--device", "cpu", "--root", str(root), "--dtype", "bfloat16"])
    assert result.exit_code == 1
    assert "nothing was measured" in result.output


def test_what_has_no_time_left_or_lacks_a_package_is_not_measured_and_no_failure(root):
    add(root, "ops/good", GOOD)
    add(root, "ops/lacking", "import no_such_package\n")
    json_file = root / "results.json"
    arguments = ["bench", "run", "--device", "cpu", "--root", str(root), "--time-limit", "0"]
    result = CliRunner().invoke(main, [*arguments, "--json", str(json_file)])
    assert result.exit_code == 0, result.output
    assert "not measured: good: not run, no time was left" in result.output
    assert "No module named 'no_such_package'" in result.output
    document = results.read(json_file)
    assert (document.failures, len(document.not_measured)) == ([], 2)


def test_a_benchmark_that_hangs_is_stopped(root):
    add(root, "ops/hangs", HEAD + "import time\ndef cases(setting):\n    time.sleep(600)\n")
    (hangs,), *_ = discover(root)
    line = "hangs: stopped after 0 s"
    assert worker.run_in_child(hangs, Setting(CPU), seconds=0.5) == Outcome(failures=[line])
    limited = Setting(CPU, limited=True)  # then it may have been too long for what was left
    assert worker.run_in_child(hangs, limited, seconds=0.5) == Outcome(not_measured=[line])


def test_no_benchmark_takes_the_time_of_all_that_follow(root, monkeypatch):
    for name in ("one", "two"):
        add(root, f"ops/{name}", GOOD)
    seconds = []
    monkeypatch.setattr(
        "blip_fast.benchmarks.run.run_in_child", lambda _, setting, limit: seconds.append(limit) or Outcome()
    )
    for limit in ("400", "50"):
        CliRunner().invoke(main, ["bench", "run", "--device", "cpu", "--root", str(root), "--time-limit", limit])
    assert seconds == [pytest.approx(expected, abs=2) for expected in (200, 200, 50, 50)]


def test_a_run_that_is_terminated_leaves_no_process_behind(root):
    pid_file = root / "pid"
    text = (
        f"import pathlib, time\ndef cases(setting):\n    pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid()))\n"
    )
    add(root, "ops/hangs", HEAD + text + "    time.sleep(600)\n")
    command = [sys.executable, "-c", "from blip_fast.cli import main; main()", "bench", "run", "--device", "cpu"]
    command += ["--root", str(root)]
    run = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    run.terminate()
    assert run.wait(60) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def test_names_are_checked(root):
    add(root, "ops/good", GOOD)
    result = CliRunner().invoke(main, ["bench", "run", "--root", str(root), "goood"])
    assert result.exit_code == 2
    assert "did you mean 'good'?" in result.output


def test_list_names_the_benchmarks(root):
    add(root, "ops/good", GOOD)
    result = CliRunner().invoke(main, ["bench", "list", "--root", str(root)])
    assert result.exit_code == 0
    assert result.output.split() == ["ops", "good", "About", "good."]


def test_dtype_and_peers_can_be_chosen():
    peers = [Variant("SDPA, copies", double), Variant("xformers", double)]
    case = small_case(*peers, aims=(Aim(2.0, over="xformers"), Aim(0.5)))
    assert Setting(CPU).select(case).variants == case.variants
    assert Setting(CPU, dtype=torch.bfloat16).select(case) is None
    for words, kept in ((("sdpa",), ["SDPA, copies"]), ((), []), (("xformers", "sdpa"), ["SDPA, copies", "xformers"])):
        chosen = Setting(CPU, dtype=torch.float32, peers=words).select(case)
        assert [variant.name for variant in chosen.variants] == ["x + x", "ours", *kept]
        assert len(chosen.aims) == 1 + ("xformers" in kept)


def test_a_peer_that_there_is_not_fails_the_run(root):
    add(root, "ops/good", GOOD)
    arguments = ["bench", "run", "--device", "cpu", "--root", str(root), "--peers", "xformers"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "no peer is called 'xformers'" in result.output


def test_a_file_grows_by_one_benchmark_after_the_other(root, monkeypatch):
    for name in ("one", "two"):
        add(root, f"ops/{name}", GOOD)
    monkeypatch.setattr(
        "blip_fast.benchmarks.run.run_in_child",
        lambda benchmark, *_: Outcome([dataclasses.replace(CASE, benchmark=benchmark.name)]),
    )
    json_file = root / "results.json"
    arguments = ["bench", "run", "--device", "cpu", "--root", str(root), "--json", str(json_file), "--update"]
    for names, expected in ((["one"], ["one"]), (["two"], ["one", "two"]), (["one"], ["one", "two"])):
        result = CliRunner().invoke(main, [*arguments, *names])
        assert result.exit_code == 0, result.output
        assert [case.benchmark for case in results.read(json_file).cases] == expected


def test_what_broke_or_did_not_run_keeps_its_earlier_results(root, monkeypatch):
    for name in ("one", "two", "three"):
        add(root, f"ops/{name}", f"PLACE = {len(name)}\n" + GOOD)
    json_file = root / "results.json"
    earlier = [dataclasses.replace(CASE, benchmark=name, date="before") for name in ("one", "two", "three")]
    results.write(dataclasses.replace(results.new_document(CPU, quick=True), cases=earlier), json_file)

    def run_the_first(benchmark, *_):
        if benchmark.name == "one":
            return Outcome([dataclasses.replace(CASE, benchmark="one")])
        return Outcome(failures=[f"{benchmark.name}: its process ended with SIGKILL"])

    monkeypatch.setattr("blip_fast.benchmarks.run.run_in_child", run_the_first)
    arguments = ["bench", "run", "--device", "cpu", "--root", str(root), "--json", str(json_file), "--update"]
    assert CliRunner().invoke(main, [*arguments, "one", "two"]).exit_code == 1
    dates = {case.benchmark: case.date for case in results.read(json_file).cases}
    assert dates == {"one": CASE.date, "two": "before", "three": "before"}


@pytest.mark.parametrize(
    ("fact", "change"),
    [
        ("cpus", {"machine": {"cpus": 4096}}),
        ("threads", {"machine": {"threads": 4096}}),
        ("cpu_capability", {"machine": {"cpu_capability": "NONE"}}),
        ("torch", {"versions": {"torch": "1.0"}}),
        ("quick", {"quick": False}),
    ],
)
def test_a_file_does_not_grow_by_what_is_not_alike(root, fact, change):
    add(root, "ops/good", GOOD)
    document = results.new_document(CPU, quick=True)
    values = {
        name: {**getattr(document, name), **value} if isinstance(value, dict) else value
        for name, value in change.items()
    }
    json_file = root / "results.json"
    results.write(dataclasses.replace(document, **values), json_file)
    arguments = ["bench", "run", "--device", "cpu", "--root", str(root), "--json", str(json_file), "--update"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert f"not alike: {fact} is" in result.output


def test_a_folder_stands_for_its_benchmarks(root):
    for name in ("ops/one", "sweeps/two", "sweeps/three"):
        add(root, name, GOOD)
    found, *_ = discover(root)
    assert {benchmark.name for benchmark in choose(found, ["sweeps"])} == {"two", "three"}
    assert len(choose(found, ["sweeps", "two", "one"])) == 3
    assert choose(found, []) == found


def test_usage_that_would_be_noticed_too_late(root, tmp_path):
    for arguments, message in (
        (["run", "--update"], "--update needs --json"),
        (["run", "--time-limit", "nan"], "nan is no number"),
    ):
        result = CliRunner().invoke(main, ["bench", *arguments, "--root", str(root)])
        assert result.exit_code == 2
        assert message in result.output


def test_results_that_cannot_be_written_end_with_one_sentence(root, tmp_path):
    add(root, "ops/good", GOOD)
    (tmp_path / "file").touch()
    arguments = ["bench", "run", "--device", "cpu", "--root", str(root), "--json", str(tmp_path / "file" / "x.json")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].startswith("Error: ")
