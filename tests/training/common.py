"""A task that takes no time: a small network learns a linear function of random numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import Dataset

from blip_fast.data.batches import Batch
from blip_fast.data.sampling import SampleKey
from blip_fast.tasks.base import Metrics, Routine, RunContext, Split, Task
from blip_fast.training.engine import Engine, Outcome, RunOptions
from blip_fast.training.settings import Decay


@dataclasses.dataclass(frozen=True)
class ToyBatch(Batch):
    rows: Tensor


class ToyData(Dataset[Tensor]):
    def __init__(self, length: int = 24) -> None:
        self.rows = torch.randn(length, 4, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: SampleKey) -> Tensor:
        return self.rows[key.number]

    @staticmethod
    def collate(samples: Sequence[Tensor]) -> ToyBatch:
        return ToyBatch(rows=torch.stack(list(samples)), broken=())


class ToyModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 1))

    def forward(self, rows: Tensor) -> Tensor:
        return (self.layers(rows) - rows.sum(1, keepdim=True)).square().mean()


class ToySettings(Decay):
    head = "pretrain"
    max_epoch: int = 3
    init_lr: float = 0.01
    workers: int = 0
    tensorboard: bool = False


class ToyTask(Task[ToySettings, ToyBatch]):
    """``metrics`` are what evaluation gives, one after another."""

    name = "toy"
    settings_class = ToySettings
    routine = Routine()

    def __init__(self, settings: ToySettings, context: RunContext, metrics: Sequence[Metrics] = ()) -> None:
        super().__init__(settings, context)
        self.metrics = list(metrics)
        self.evaluated: list[tuple[str, int | None]] = []
        self.poison_at: int | None = None  # step of the whole run whose loss is NaN
        self.steps = 0

    def build_model(self) -> nn.Module:
        return ToyModel()

    def train_data(self) -> Dataset[Any]:
        return ToyData()

    @property
    def batch_size(self) -> int:
        return 4

    def losses(self, model: nn.Module, batch: ToyBatch, alpha: float) -> dict[str, Tensor]:
        loss = model(batch.rows)
        if self.steps == self.poison_at:
            loss = loss * float("nan")
        self.steps += 1
        return {"loss_first": loss, "loss_second": alpha * loss}

    def learning_rate(self, epoch: int, step: int, steps_per_epoch: int) -> float:
        return self.settings.init_lr / (epoch + 1)

    def alpha(self, epoch: int, step: int, steps_per_epoch: int) -> float:
        return step / steps_per_epoch

    def evaluate(self, model: nn.Module, split: Split, epoch: int | None) -> Metrics:
        torch.rand(3)  # evaluation may draw what it likes
        assert not model.training
        assert not torch.is_grad_enabled()
        self.evaluated.append((split, epoch))
        return self.metrics.pop(0)

    def samples(self, model: nn.Module) -> list[dict[str, Any]]:
        layers: nn.Module = model.layers  # type: ignore[assignment]
        return [{"of ones": layers(torch.ones(1, 4)).item()}]


def toy(folder: Path, metrics: Sequence[Metrics] = (), routine: Routine | None = None, **settings: Any) -> ToyTask:
    """A task whose run writes to ``folder``."""
    context = RunContext(output_dir=folder, console=Console(quiet=True))
    task = ToyTask(ToySettings(**settings), context, metrics)
    if routine is not None:
        task.routine = routine  # type: ignore[misc]
    return task


def run(task: ToyTask, **options: Any) -> Outcome:
    """Run a task to its end."""
    torch.manual_seed(task.context.seed)
    return Engine(task, RunOptions(**options)).run()


def weights(path: Path) -> dict[str, Tensor]:
    """The model in a checkpoint."""
    content: dict[str, dict[str, Tensor]] = torch.load(path, weights_only=True)
    return content["model"]


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether two state_dicts are the same bits."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
