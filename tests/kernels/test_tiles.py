"""Tiles of the attention kernels: the stored table goes before the rule, and is read only if it is sound."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

pytest.importorskip("triton")

from blip_fast.kernels import tiles
from blip_fast.kernels.tiles import Job, Tile

CPU = torch.device("cpu")  # looked up as an H100, as in the interpreter
JOB, TILE = Job("forward", 64, 64, 2), Tile(32, 128, 8, 1)
JOBS = [Job(*parts) for parts in itertools.product(tiles.KERNELS, (16, 32, 64), (64, 128), (2, 4))]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder in which tables are looked for."""
    monkeypatch.setattr(tiles.table_path, "__defaults__", (tmp_path,))
    for cached in (tiles.stored_tiles, tiles.tile_for):
        cached.cache_clear()
    yield tmp_path
    for cached in (tiles.stored_tiles, tiles.tile_for):
        cached.cache_clear()


def lookup(job=JOB):
    return tiles.tile_for(job.kernel, job.tile_rows, job.head_size, job.itemsize, CPU)


def test_without_a_table_the_rule_decides(folder):
    assert lookup() == tiles.tile_by_rule(JOB) != TILE


def test_a_stored_tile_goes_before_the_rule(folder):
    document = tiles.table_document(90, {JOB: TILE}, device="a GPU")
    (folder / "tiles_sm90.json").write_text(json.dumps(document))
    assert lookup() == TILE
    other = Job("forward", 32, 64, 2)
    assert lookup(other) == tiles.tile_by_rule(other)


def test_a_table_of_another_architecture_is_not_read(folder):
    (folder / "tiles_sm80.json").write_text(json.dumps(tiles.table_document(80, {JOB: TILE})))
    assert lookup() == tiles.tile_by_rule(JOB)


def test_tables_are_read_as_they_were_written():
    table = {job: tiles.tile_by_rule(job) for job in JOBS}
    document = json.loads(json.dumps(tiles.table_document(90, table, triton="3.5", device="a GPU")))
    assert tiles.parse_table(document, 90) == table
    assert document["device"] == "a GPU"
    assert document == tiles.table_document(90, dict(reversed(table.items())), triton="3.5", device="a GPU")


@pytest.mark.parametrize("job", JOBS, ids=str)
def test_the_rule_gives_a_candidate(job):
    assert tiles.tile_by_rule(job) in tiles.candidates(job)


def test_blocks_of_rows_divide_a_tile_of_rows():
    assert {tile.block_m for tile in tiles.candidates(Job("grad_query", 32, 64, 2))} == {16, 32}


def test_unsound_tables_are_refused():
    document = tiles.table_document(90, {JOB: TILE})
    with pytest.raises(ValueError, match="the table is of arch 90; expected 80"):
        tiles.parse_table(document, 80)
    with pytest.raises(ValueError, match=r"gives Job.* the tile .*block_m=128.*; expected one that it can run with"):
        tiles.parse_table(tiles.table_document(90, {JOB: Tile(128, 64, 4, 2)}), 90)
    with pytest.raises(ValueError, match="kernel is 'backward'; expected one of forward, grad_query"):
        tiles.candidates(Job("backward", 64, 64, 2))


def test_stored_tables_are_sound():
    for path in tiles.FOLDER.glob("tiles_sm*.json"):
        assert tiles.stored_tiles(int(path.stem.removeprefix("tiles_sm")))
