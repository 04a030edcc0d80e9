"""The seam between a published program (what is learned, from what, and how it is judged) and the engine that runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import Dataset

from blip_fast.checkpoints import load_checkpoint
from blip_fast.data.bad_samples import BadSamples
from blip_fast.training.devices import to_device

if TYPE_CHECKING:
    from blip_fast.training.settings import RunSettings

Split = Literal["val", "test"]
Metrics = Mapping[str, float]
SettingsT = TypeVar("SettingsT", bound="RunSettings")
Batch = TypeVar("Batch")


@dataclass(frozen=True)
class RunContext:
    """Where a task runs.

    Attributes:
        device: of the model and its batches.
        rank, world_size: of this process; 0 and 1 without a process group.
        seed: of the whole run, the same on every rank.
        output_dir: where results are written (``result`` below it for result files).
        console: prints on rank 0 and is quiet elsewhere.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    world_size: int = 1
    seed: int = 42
    output_dir: Path = Path("output")
    console: Console = field(default_factory=lambda: Console(stderr=True))

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    @property
    def result_dir(self) -> Path:
        """Folder of the published result files; made when first asked for."""
        folder = self.output_dir / "result"
        folder.mkdir(parents=True, exist_ok=True)
        return folder


@dataclass(frozen=True)
class Routine:
    """What a published program does around its epochs; the engine follows it.

    Attributes:
        trains: False for programs that only evaluate.
        splits: evaluated after every epoch, and with ``--evaluate``.
        final_splits: evaluated once, after the last epoch (VQA), and with ``--evaluate``.
        best: metrics of "val" whose sum decides which epoch becomes ``checkpoint_best.pth``. Without any, every epoch
            becomes a ``checkpoint_NN.pth``.
        test_of_best: log the test metrics of the best epoch so far in place of this epoch's (retrieval).
        logs_best_epoch: ``best_epoch`` stands in every line of log.txt (caption, retrieval).
        ends_with_best_epoch: log.txt ends with ``best epoch: N`` (NLVR2).
        train_format: of the averages of training, which log.txt has as strings.
        metric_format: of the metrics in log.txt where the program has them as strings; None writes numbers.
        evaluate_file: where ``--evaluate`` appends its line; None where the program writes result files only.
    """

    trains: bool = True
    splits: tuple[Split, ...] = ()
    final_splits: tuple[Split, ...] = ()
    best: tuple[str, ...] = ()
    test_of_best: bool = False
    logs_best_epoch: bool = False
    ends_with_best_epoch: bool = False
    train_format: str = "{:.3f}"
    metric_format: str | None = None
    evaluate_file: str | None = None


class Task(Generic[SettingsT, Batch]):
    """One published program. Subclasses implement what raises NotImplementedError here.

    Class attributes: ``name`` of the program, ``settings_class`` (a `RunSettings`), and the ``routine``. What cannot be read
    is counted in ``bad``.
    """

    name: ClassVar[str]
    settings_class: ClassVar[type[Any]]
    routine: ClassVar[Routine]

    def __init__(self, settings: SettingsT, context: RunContext) -> None:
        self.settings = settings
        self.context = context
        self.bad = BadSamples(settings.max_bad_samples)

    def files(self) -> list[Path]:
        """Every input file and folder that the run will open; ``--dry-run`` checks that they exist."""
        raise NotImplementedError

    def build_model(self) -> nn.Module:
        """The model with random initial values, on the CPU; under `torch.device("meta")`, for ``--dry-run``, without any."""
        raise NotImplementedError

    def prepared_model(self) -> nn.Module:
        """The same with activation checkpointing, where the settings want it for training."""
        model, settings = self.build_model(), self.settings
        if settings.vit_grad_ckpt and self.routine.trains:
            model.visual_encoder.set_grad_checkpointing(True, settings.vit_ckpt_layer, settings.recompute)
        return model

    def load_initial(self, model: nn.Module) -> None:
        """Load what the run starts from, as published: by default the checkpoint ``settings.pretrained``, if it is set."""
        if self.settings.pretrained:
            load_checkpoint(model, self.settings.pretrained)

    def train_data(self) -> Dataset[Any]:
        """Map-style training samples; ``collate`` of the data set makes a `Batch`. Not called by programs that only evaluate.

        A data set with ``set_epoch(epoch)`` is told the epoch before its samples are asked for.
        """
        raise NotImplementedError

    @property
    def batch_size(self) -> int:
        """Training samples of one rank in a batch."""
        raise NotImplementedError

    def to_device(self, batch: Batch) -> Batch:
        """The batch with its tensors on the device; masks stay on the CPU, where text lengths are read."""
        return to_device(batch, self.context.device)

    def fixed_shape(self, batch: Batch) -> Batch:
        """The batch in one of a few shapes, and without what is no tensor, for CUDA graphs. Not for every program."""
        raise ValueError(f"cuda_graph=True is not for {self.name}, whose batches have too many shapes; expected False")

    def losses(self, model: nn.Module, batch: Batch, alpha: float) -> dict[str, Tensor]:
        """Losses (scalars with gradient) of a batch on the device, named and ordered as in log.txt; the engine sums them.

        ``model`` is what `build_model` gave, possibly in DDP's wrapper: call it, do not reach into it.
        """
        raise NotImplementedError

    def learning_rate(self, epoch: int, step: int, steps_per_epoch: int) -> float:
        """Learning rate of optimizer step ``step`` (from 0) of an epoch."""
        raise NotImplementedError

    def alpha(self, epoch: int, step: int, steps_per_epoch: int) -> float:
        """Weight of the momentum targets in that step; 0 for programs without them."""
        return 0.0

    def evaluate(self, model: nn.Module, split: Split, epoch: int | None) -> Metrics:
        """Metrics of a split, on rank 0 at least; all ranks call it together.

        ``model`` is in eval mode and not wrapped; no gradient is recorded. Result files are written below
        ``context.result_dir`` as published; ``epoch`` (None for ``--evaluate``) is in the names of some.
        """
        raise NotImplementedError

    def samples(self, model: nn.Module) -> list[dict[str, Any]]:
        """A few predictions for the report page: dictionaries with "picture" (a path; optional) and texts by name."""
        return []
