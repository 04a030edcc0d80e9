from __future__ import annotations

import pytest
import torch

from blip_fast.training.distributed import (
    Rank,
    SharedFlag,
    barrier,
    broadcast_object,
    find_device,
    find_rank,
    gather_objects,
    process_group,
    sum_over_ranks,
)


@pytest.mark.parametrize(
    ("environ", "world_size", "expected"),
    [
        ({}, 1, Rank()),
        ({}, 8, Rank()),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, 1, Rank(5, 8, 1)),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1"}, 1, Rank(3, 4, 1)),
        ({"SLURM_PROCID": "3"}, 4, Rank(3, 4, 0)),
        ({"RANK": "0", "WORLD_SIZE": "1", "SLURM_PROCID": "3"}, 1, Rank(0, 1, 0)),
    ],
)
def test_ranks_come_from_torchrun_then_slurm(environ: dict[str, str], world_size: int, expected: Rank) -> None:
    assert find_rank(environ, world_size) == expected
    assert find_rank(environ, world_size, distributed=expected.world_size > 1) == expected


@pytest.mark.parametrize(
    ("environ", "distributed", "message"),
    [
        ({"RANK": "8", "WORLD_SIZE": "8"}, True, "RANK=8; expected a rank below WORLD_SIZE=8"),
        ({"RANK": "x", "WORLD_SIZE": "8"}, True, "RANK='x'; expected a number"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, False, "distributed=False, but 2 processes"),
        ({"SLURM_PROCID": "2"}, True, "expected a rank below SLURM_NTASKS=1"),
    ],
)
def test_contradictions_are_named(environ: dict[str, str], distributed: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_rank(environ, 1, distributed)


def test_a_single_process_has_no_group() -> None:
    with process_group(Rank(), torch.device("cpu"), "nonsense://"):
        assert not torch.distributed.is_initialized()
        barrier()
        assert broadcast_object("x") == "x"
        assert gather_objects(3) == [3]
        assert sum_over_ranks(torch.ones(2)).tolist() == [1.0, 1.0]
        flag = SharedFlag()
        assert not flag.poll()
        flag.raised = True
        assert flag.poll()
        assert flag.settle()


def test_ranks_without_an_address_are_told_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ValueError, match="needs MASTER_ADDR"), process_group(Rank(0, 2, 0), torch.device("cpu")):
        pass


def test_devices() -> None:
    assert find_device("cpu", Rank()) == torch.device("cpu")
    assert find_device("auto", Rank()).type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("nonsense", "meta"):
        with pytest.raises(ValueError, match=f"device='{name}' cannot be used here"):
            find_device(name, Rank())


def test_a_gpu_becomes_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch, "empty", lambda *size, device: None)
    assert find_device("cuda", Rank(number=3, world_size=4, local=3)) == torch.device("cuda:1")
    assert find_device("cuda:0", Rank()) == torch.device("cuda:0")
    assert chosen == [torch.device("cuda:1"), torch.device("cuda:0")]
