"""Several processes (gloo) against one that runs the same batches one after the other; DDP against FSDP2."""

from __future__ import annotations

import dataclasses
import io
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rich.console import Console
from torch import Tensor
from torch.distributed.tensor import DTensor

from blip_fast.data.packing import pack
from blip_fast.models import BlipConfig, BlipPretrain
from blip_fast.tasks.base import Routine, RunContext
from blip_fast.training.distributed import Rank, SharedFlag, gather_objects, process_group
from blip_fast.training.engine import Engine, RunOptions
from blip_fast.training.parallel import whole_tensors
from blip_fast.training.settings import PretrainSettings
from blip_fast.training.trainer import Trainer
from tests.models.common import SIZES, texts
from tests.training.common import ToyData, ToySettings, ToyTask, same

STEPS, BATCH = 5, 2
STRATEGIES = ("ddp", "fsdp")
SETTINGS = dict(weight_decay=0.05, clip_norm=1.0)
Batch = tuple[Tensor, Any, tuple[Tensor, Tensor]]


def build() -> BlipPretrain:
    torch.manual_seed(0)
    return BlipPretrain(BlipConfig(**SIZES | {"momentum": 0.9})).train()


def batch_of(step: int, rank: int) -> Batch:
    """Images, packed texts and negatives."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    images = torch.randn(BATCH, 3, 16, 16, generator=generator)
    ids, mask = texts(BATCH, 8, generator=100 * step + rank)
    rows = torch.arange(BATCH)
    return images, pack(ids, mask), (rows.roll(1), rows.roll(-1))


def losses(model: torch.nn.Module, batch: Batch, alpha: float) -> dict[str, Tensor]:
    images, packed, negatives = batch
    out = model(images, packed, alpha=alpha, negatives=negatives)
    return {"loss_ita": out.loss_itc, "loss_itm": out.loss_itm, "loss_lm": out.loss_lm}


def train(rank: int, strategy: str, steps: int = STEPS) -> dict[str, Any]:
    """Losses of one rank, and the whole state afterwards."""
    trainer = Trainer(build(), losses, PretrainSettings(strategy=strategy, **SETTINGS))
    sharded = [p for p in trainer.model.parameters() if isinstance(p, DTensor)]
    # all but the temperature
    assert len(sharded) == (len(list(trainer.model.parameters())) - 1 if strategy == "fsdp" else 0)
    reports = [trainer.step((batch_of(step, rank),), 1e-3, 0.4) for step in range(steps)]
    return {
        "losses": [[float(value) for value in report.values()] for report in reports],
        "state": whole_tensors(trainer.model.state_dict()),
        "queue": trainer.model.image_queue.clone(),
    }


def accumulated(rank: int, strategy: str) -> dict[str, Tensor]:
    """State after one step on two batches of each rank."""
    trainer = Trainer(build(), losses, PretrainSettings(strategy=strategy, accumulate=2))
    trainer.step((batch_of(0, rank), batch_of(1, rank)), 1e-3, 0.4)
    return whole_tensors(trainer.model.state_dict())


class OneAfterTheOther:
    """The same in one process: each rank's batch against the queues as they were before the step, gradients averaged."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self.trainer = Trainer(build(), self.one_rank, PretrainSettings(**SETTINGS))
        self.model = self.trainer.model
        self.queues = (self.model.image_queue, self.model.text_queue)
        self.losses: list[list[list[float]]] = []

    def step(self, number: int) -> None:
        self.number, self.start = number, int(self.model.queue_ptr)
        self.before, self.after = ([queue.clone() for queue in self.queues] for _ in range(2))
        self.losses.append([])
        self.trainer.step(tuple(range(self.ranks)), 1e-3, 0.4)
        self.put(self.after, self.start + self.ranks * BATCH)

    def put(self, queues: list[Tensor], pointer: int) -> None:
        for queue, values in zip(self.queues, queues, strict=True):
            queue.copy_(values)
        self.model.queue_ptr.fill_(pointer % self.queues[0].shape[1])

    def one_rank(self, model: Any, rank: int, alpha: float) -> dict[str, Tensor]:
        self.put(self.before, self.start)
        result = losses(model, batch_of(self.number, rank), alpha)
        first, size = torch.arange(BATCH) + self.start, self.queues[0].shape[1]
        for queue, after in zip(self.queues, self.after, strict=True):
            after[:, (first + rank * BATCH) % size] = queue[:, first % size]
        self.losses[-1].append([value.item() for value in result.values()])
        return result


def engine_runs(rank: int, ranks: int, folder: Path, strategy: str) -> None:
    """A whole run, and one that is interrupted in its second epoch and goes on."""
    settings = ToySettings(strategy=strategy, save_every_steps=1)
    for name, stop in (("whole", 0), ("parts", 4), ("parts", 0)):
        output = folder / strategy / name
        context = RunContext(rank=rank, world_size=ranks, output_dir=output, console=Console(quiet=True))
        task = ToyTask(settings if not stop else settings.model_copy(update={"max_steps": stop}), context)
        torch.manual_seed(0)
        Engine(task, RunOptions(resume="auto")).run()
        dist.barrier()


def told(rank: int, ranks: int, folder: Path) -> list[str]:
    """What a rank prints of a run in which each cannot read a picture of its own, in training and in evaluation."""
    file = io.StringIO()
    context = RunContext(rank=rank, world_size=ranks, output_dir=folder, console=Console(file=file, quiet=rank != 0))
    task = ToyTask(ToySettings(max_epoch=1), context)
    task.routine = Routine(splits=("val",))  # type: ignore[misc]
    data = ToyData()
    data.collate = lambda rows: dataclasses.replace(ToyData.collate(rows), broken=(f"train{rank}",))  # type: ignore[method-assign]
    task.train_data = lambda: data  # type: ignore[method-assign]
    task.evaluate = lambda *arguments: task.bad.add([f"val{rank}", "val of all"]) or {}  # type: ignore[method-assign, func-returns-value]
    Engine(task, RunOptions()).run()
    return sorted(line for line in file.getvalue().splitlines() if line.startswith("skipped"))


def on_disks_of_their_own(rank: int, ranks: int, folder: Path) -> str:
    """What each rank says where only the first one finds the state."""
    (folder / "0").mkdir(parents=True, exist_ok=True)
    (folder / "0" / "resume.pth").touch()
    context = RunContext(rank=rank, world_size=ranks, output_dir=folder / str(rank), console=Console(quiet=True))
    try:
        Engine(ToyTask(ToySettings(), context), RunOptions(resume="auto")).run()
    except ValueError as error:
        return str(error)
    return ""


def flags(rank: int, ranks: int) -> list[bool]:
    """What each poll sees when one rank raises a flag before its second."""
    flag = SharedFlag()
    seen = [flag.poll()]
    flag.raised = rank == ranks - 1
    return [*seen, flag.poll(), flag.poll(), flag.settle()]


def worker(rank: int, ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    with process_group(Rank(rank, ranks, rank), torch.device("cpu"), f"file://{folder}/rendezvous"):
        strategies = STRATEGIES if ranks == 2 else ("ddp",)
        result: dict[str, Any] = {strategy: train(rank, strategy) for strategy in strategies}
        result["flags"] = flags(rank, ranks)
        result["gathered"] = gather_objects(f"rank {rank}")
        result["told"] = told(rank, ranks, Path(folder) / f"told{ranks}")
        result["apart"] = on_disks_of_their_own(rank, ranks, Path(folder) / f"apart{ranks}")
        if ranks == 2:
            result["accumulated"] = {strategy: accumulated(rank, strategy) for strategy in strategies}
            for strategy in strategies:
                engine_runs(rank, ranks, Path(folder), strategy)
        torch.save(result, f"{folder}/rank{rank}.pt")


def start(ranks: int, folder: Path) -> Any:
    """Run `worker` on so many ranks: the folder, and what each found."""
    # forked from a process that has imported everything: quicker
    multiprocessing.set_forkserver_preload(["blip_fast.models", "blip_fast.training.engine", "blip_fast.tasks.base"])
    mp.start_processes(worker, args=(ranks, str(folder)), nprocs=ranks, start_method="forkserver")
    return folder, [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(ranks)]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return start(2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module", params=[2, 4])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return (
        request.getfixturevalue("two_ranks")[1] if request.param == 2 else start(4, tmp_path_factory.mktemp("four"))[1]
    )


def test_ranks_equal_one_process(results: Any) -> None:
    expected = OneAfterTheOther(len(results))
    for step in range(STEPS):
        expected.step(step)
    for strategy in STRATEGIES if len(results) == 2 else ("ddp",):
        for rank, result in enumerate(results):
            values = torch.tensor(result[strategy]["losses"])
            torch.testing.assert_close(values, torch.tensor(expected.losses)[:, rank], rtol=1e-5, atol=1e-5)
        for name, tensor in expected.model.state_dict().items():
            own = results[0][strategy]["state"][name]
            torch.testing.assert_close(own, tensor, rtol=1e-4, atol=2e-5, msg=f"{strategy}: {name}")


def test_queues_are_the_same_on_all_ranks(results: Any) -> None:
    first = results[0]["ddp"]
    assert first["state"]["queue_ptr"].item() == STEPS * BATCH * len(results) % SIZES["queue_size"]
    assert all(torch.equal(first["queue"], result["ddp"]["queue"]) for result in results)
    assert all(same(first["state"], result["ddp"]["state"]) for result in results)


def test_sharded_equals_replicated(two_ranks: Any) -> None:
    for result in two_ranks[1]:
        states = [result[strategy]["state"] for strategy in STRATEGIES]
        for name, tensor in states[0].items():
            torch.testing.assert_close(states[1][name], tensor, rtol=1e-6, atol=5e-6, msg=name)
        for name, tensor in result["accumulated"]["ddp"].items():
            torch.testing.assert_close(result["accumulated"]["fsdp"][name], tensor, rtol=1e-6, atol=5e-6, msg=name)


def test_runs_go_on_to_the_same_bits(two_ranks: Any) -> None:
    folder, states = two_ranks[0], {}
    for strategy in STRATEGIES:
        files = [folder / strategy / name / "checkpoint_02.pth" for name in ("whole", "parts")]
        whole, parts = (torch.load(file, weights_only=True) for file in files)
        assert same(whole["model"], parts["model"])
        assert whole["optimizer"]["state"][0]["exp_avg"].shape == whole["model"]["layers.0.weight"].shape
        states[strategy] = whole["model"]
        logs = [(folder / strategy / name / "log.txt").read_text().splitlines() for name in ("whole", "parts")]
        assert logs[0][-1] == logs[1][-1]
        samples = [(folder / strategy / name / "samples.json").read_text() for name in ("whole", "parts")]
        assert samples[0] == samples[1] != "[]"
    for name, tensor in states["ddp"].items():
        torch.testing.assert_close(states["fsdp"][name], tensor, rtol=1e-6, atol=1e-6, msg=name)


def test_what_any_rank_cannot_read_is_told_once(results: Any) -> None:
    names = [f"{split}{rank}" for split in ("train", "val") for rank in range(len(results))]
    assert results[0]["told"] == sorted(f"skipped: {name}" for name in [*names, "val of all"])
    assert all(result["told"] == [] for result in results[1:])


def test_ranks_that_do_not_share_their_disk_are_told(results: Any) -> None:
    for result in results:
        assert result["apart"].endswith(
            "is there for rank 0, but not for rank 1; expected the file on the machines of all ranks"
        )


def test_a_flag_of_one_rank_is_seen_by_all_at_once(results: Any) -> None:
    assert [result["flags"] for result in results] == [[False, False, True, True]] * len(results)
    assert results[0]["gathered"] == [f"rank {rank}" for rank in range(len(results))]
    assert all(result["gathered"] is None for result in results[1:])
