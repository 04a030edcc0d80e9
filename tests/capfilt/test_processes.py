"""Real processes: kill -9, torchrun, a Ray cluster, and memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from blip_fast.capfilt import run_capfilt
from blip_fast.data.demo_pairs import demo_root
from tests.capfilt.common import demo_entries, files_of, save_checkpoint, settings, write_list

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
OPTIONS = ["--image-root", str(demo_root()), "--unit-size", "6", "--batch-size", "4", "--max-length", "9"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkpoint, a list, and what one undisturbed run makes of them."""
    folder = tmp_path_factory.mktemp("capfilt")
    save_checkpoint(folder / "model")
    write_list(folder / "web.json", demo_entries(40))
    run_capfilt(of(folder, folder / "alone"))
    return folder


def of(folder, output):
    model = str(folder / "model")
    return settings(str(folder / "web.json"), output, captioner=model, filter=model)


def arguments(folder, output, *more):
    model = str(folder / "model")
    return ["capfilt", "--images", str(folder / "web.json"), "--captioner", model, "--filter", model,
            "--output", str(output), *OPTIONS, *more]  # fmt: skip


CLI = "import torch; torch.set_num_threads(1); from blip_fast.cli import main; main()"


def test_a_killed_run_goes_on_to_the_same_files(place, tmp_path):
    output = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", CLI, *arguments(place, output)], env=ENVIRONMENT)
    deadline = time.monotonic() + 300
    while not (output / "scores" / "000000.json").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in (output / "scores").glob("??????.json")}
    assert not (output / "manifest.json").exists()
    run_capfilt(of(place, output))
    assert files_of(output) == files_of(place / "alone")
    assert all(path.stat().st_mtime_ns == when for path, when in finished.items())


def test_torchrun_gives_the_same_files(place, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = tmp_path / "script.py"
    script.write_text(CLI)
    subprocess.run([*launcher, str(script), *arguments(place, tmp_path / "out")], check=True, env=ENVIRONMENT)
    assert files_of(tmp_path / "out") == files_of(place / "alone")


def test_a_ray_cluster_gives_the_same_files(place, tmp_path):
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False,
             runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})  # fmt: skip
    units = []
    try:
        run_capfilt(of(place, tmp_path / "out"), "ray", 1, on_unit=lambda unit, counts: units.append(unit.index))
    finally:
        ray.shutdown()
    assert sorted(units) == list(range(7))
    assert files_of(tmp_path / "out") == files_of(place / "alone")


def test_memory_stays_flat_over_ten_times_the_input(place, tmp_path):
    entries = [entry | {"key": f"{number}"} for number, entry in enumerate(demo_entries(40) * 15)]
    for name, count in (("small", 60), ("large", 600)):
        write_list(tmp_path / f"{name}.json", entries[:count])
    script = f"""
import resource, torch
torch.set_num_threads(1)
from click.testing import CliRunner
from blip_fast.cli.capfilt import command
for name in ("small", "small", "large"):
    options = ["--images", f"{tmp_path}/{{name}}.json", "--output", f"{tmp_path}/{{name}}-{{torch.randint(99, (1,))}}"]
    options += {arguments(place, tmp_path)[3:7] + OPTIONS}
    result = CliRunner().invoke(command, options)
    assert result.exit_code == 0, result.output
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    lines = subprocess.run(
        [sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True, check=True
    ).stdout
    _, small, large = map(int, lines.split())
    manifest = json.loads(next(tmp_path.glob("large-*/manifest.json")).read_text())
    assert manifest["samples"]["scored"] == 600
    decoded = 540 * 3 * 32 * 32 * 4 // 1024  # of the additional pictures, KiB
    assert large - small < 3 * 1024 < decoded
