"""The tuning command without a GPU: what it tries, what it leaves out, what it writes, and what it says."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

pytest.importorskip("triton")

from blip_fast.benchmarks import tune
from blip_fast.kernels import tiles
from blip_fast.kernels.tiles import Job, Tile
from blip_fast.ops.registry import interpreting

CPU = torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_says_that_it_needs_a_gpu():
    result = CliRunner().invoke(tune.main, ["cross_attention"])
    assert result.exit_code == 1
    assert result.output == "Error: tuning times kernels on a CUDA device, and torch finds none here\n"


@pytest.mark.parametrize("operation", tune.OPERATIONS)
def test_every_job_has_candidates_and_a_workload(operation):
    jobs = tune.jobs_of(operation)
    assert len(set(jobs)) == len(jobs)
    for job in jobs:
        assert job.kernel in tune.KERNELS
        assert len(tiles.candidates(job)) > 20
        tune.workload(job, torch.device("meta"))()  # shapes fit


@pytest.mark.skipif(interpreting(), reason="the interpreter replaces the compiler")
def test_tiles_that_spill_are_left_out():
    job = Job("self_backward", 64, 64, 4)
    assert tune.fits(job, tiles.tile_by_rule(job), 90)
    assert not tune.fits(job, Tile(64, 64, 4, 1), 90)


def test_a_tile_is_in_force_inside_the_block_only():
    job, tile = Job("forward", 64, 64, 2), Tile(32, 128, 8, 1)

    def lookup():
        return tiles.tile_for(job.kernel, job.tile_rows, job.head_size, job.itemsize, CPU)

    before = lookup()
    with tune.launched_with(job, tile, 90):
        assert lookup() == tile
    assert lookup() == before != tile


def test_stores_a_table_that_the_kernels_read(tmp_path):
    job, tile = Job("forward", 64, 64, 2), Tile(32, 128, 8, 1)
    with tune.launched_with(job, tile, 90):
        tune.store(tmp_path, 90, "a GPU")
    document = json.loads((tmp_path / "tiles_sm90.json").read_text())
    assert document["device"] == "a GPU"
    assert tiles.parse_table(document, 90)[job] == tile
    assert [path.name for path in tmp_path.iterdir()] == ["tiles_sm90.json"]
