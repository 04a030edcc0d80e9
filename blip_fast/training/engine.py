"""Runs a task: epochs of training with checkpoints, evaluation and logs as published, or evaluation alone."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import itertools
import json
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from blip_fast.checkpoints.files import write_json
from blip_fast.generation.kept import forget_sessions
from blip_fast.training import resume
from blip_fast.training.checkpoint import (
    BEST,
    load_model,
    load_published,
    prune_numbered,
    published_content,
    read_training_checkpoint,
    write_content,
)
from blip_fast.training.distributed import SharedFlag, barrier, broadcast_object, gather_objects
from blip_fast.training.logs import HISTORY, LOG, append_line, forget_from, log_line
from blip_fast.training.loop import epoch_batches, train_steps
from blip_fast.training.losses import LossReader, NonFiniteLossError, save_bad_step
from blip_fast.training.meters import MetricLog
from blip_fast.training.precision import Precision
from blip_fast.training.seeding import seed_everything, unchanged_random_state
from blip_fast.training.signals import raise_on_sigterm
from blip_fast.training.trainer import Trainer
from blip_fast.training.watch import Watch

if TYPE_CHECKING:
    from blip_fast.tasks.base import Metrics, Split, Task


class Outcome(enum.Enum):
    """How a run ended."""

    FINISHED = "finished"
    INTERRUPTED = "interrupted"


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """What the command line says beside the settings.

    Attributes:
        evaluate: only evaluate.
        checkpoint: training checkpoint to go on from ("" for none): after its epoch, as published.
        resume: "auto" goes on from the output folder's resume state if there is one; a path from that file; "" does not.
        profile: whether to record a trace of a few steps.
    """

    evaluate: bool = False
    checkpoint: str = ""
    resume: str = ""
    profile: bool = False


class Engine:
    """One run of a task. All ranks make one and call :meth:`run`."""

    def __init__(self, task: Task[Any, Any], options: RunOptions) -> None:
        self.task, self.options = task, options
        self.settings, self.context, self.routine = task.settings, task.context, task.routine
        self.folder = self.context.output_dir
        self.bad, self.looked_at, self.told = task.bad, 0, set[str]()
        self.config = self.settings.model_dump()
        self.given = self.config | {"seed": self.context.seed}  # a resumed run tells what has changed of these

    def run(self) -> Outcome:
        """Train, or evaluate where that is asked for or all that the program does."""
        self.folder.mkdir(parents=True, exist_ok=True)
        splits = self.routine.splits + self.routine.final_splits
        if not self.routine.trains or (self.options.evaluate and splits):
            self._evaluate_only(splits)
            return Outcome.FINISHED
        if self.options.evaluate:
            self._say(f"{self.task.name} has nothing to evaluate: --evaluate changes nothing, as published")
        return self._train()

    # Training

    def _train(self) -> Outcome:
        state = self._state_file()
        self.trainer: Trainer[Any] = Trainer(
            self._model(load=not (self.options.checkpoint or state)),
            self.task.losses,
            self.settings,
            self.task.to_device,
            self.task.fixed_shape,
        )
        self.config |= self._model_fields(self.trainer.model)
        seed_everything(self.context.seed, self.context.rank)
        self._start(state)
        with unchanged_random_state():  # what a resumed run does here must not show in its numbers
            self.data = self.task.train_data()
            self._tell_bad()
            self._say(f"number of training samples: {len(self.data)}")
            watch = Watch(self.task, self.trainer, self.samples_per_step, self.place.steps, self.options.profile)
        self.flag = SharedFlag()
        with raise_on_sigterm(self.flag), watch:
            for epoch in range(self.place.epoch, self.settings.max_epoch):
                if not self._train_epoch(epoch, watch):
                    return Outcome.INTERRUPTED
                self._finish_epoch(epoch, watch)
                if self._is_last_step():
                    break
        self._finish_run()
        return Outcome.FINISHED

    def _train_epoch(self, epoch: int, watch: Watch) -> bool:
        """The steps of an epoch that are left to do; False where a signal ended it."""
        place = self.place
        self.log = MetricLog(place.series)
        if self._is_last_step():
            return True  # only the evaluation was left
        batches, steps = epoch_batches(self.task, self.data, epoch, place.step)
        if 0 < place.step < steps and self.context.is_main:  # a run that ended within this epoch has written its line
            forget_from(self.folder / LOG, epoch, start=place.log_start)
        watch.start_epoch(place, steps)
        reader = LossReader()
        for report in train_steps(self.task, self.trainer, batches, epoch, steps, place.step, watch.counting):
            place.step, place.steps = place.step + 1, place.steps + 1
            self._count_bad(report.batches)
            reader.put(report)
            last = place.step == steps or self._is_last_step()
            due = self.settings.save_every_steps and place.steps % self.settings.save_every_steps == 0
            stopped = self.flag.poll()
            self._record(reader, watch, wait=bool(last or due or stopped))
            if last or due or stopped:
                self._tell_bad()
                self._save_state()
            if stopped or (last and self.flag.settle()):
                self._say(f"SIGTERM: state saved in {self.folder / resume.FILE}; --resume auto goes on from there")
                return False
            if last:
                break
        return True

    def _count_bad(self, group: tuple[Any, ...]) -> None:
        """Count what could not be read for these batches; rank 0 tells its own at once."""
        for batch in group:
            self.bad.add(batch.broken)
        if self.context.is_main:
            self._say_skipped(self._new_bad())

    def _tell_bad(self) -> None:
        """Tell what the ranks could not read and has not been told; all of them call it."""
        for messages in gather_objects(self._new_bad()) or ():
            self._say_skipped(messages)

    def _new_bad(self) -> list[str]:
        """What this rank could not read since it was last asked."""
        new = list(itertools.islice(self.bad.messages, self.looked_at, None))
        self.looked_at = len(self.bad)
        return new

    def _say_skipped(self, messages: list[str]) -> None:
        for message in messages:
            if message not in self.told:  # ranks read the same annotations
                self._say(f"skipped: {message}")
        self.told.update(messages)

    def _record(self, reader: LossReader, watch: Watch, wait: bool) -> None:
        try:
            for report, values in reader.take(wait):
                self.log.append({"lr": report.lr, **values})
                watch.step(report, self.log)
        except NonFiniteLossError as error:
            path = save_bad_step(self.folder, self.context.rank, error)
            raise NonFiniteStop(f"{error}. Its batch is in {path}; no checkpoint has been written since") from error

    def _is_last_step(self) -> bool:
        return bool(self.settings.max_steps) and self.place.steps >= self.settings.max_steps

    # Between epochs

    def _finish_epoch(self, epoch: int, watch: Watch) -> None:
        """Evaluate, write the checkpoint and the line of log.txt, as the published program does after an epoch."""
        if self.best.steps < self.place.steps:
            averages = self.log.averages_over_ranks()
            watch.end_epoch(averages)
            model, splits = self.trainer.model, self.routine.splits
            metrics: dict[str, Metrics] = {split: self._evaluate(model, split, epoch) for split in splits}
            self._checkpoint(epoch, metrics)
            if self.routine.test_of_best:
                metrics["test"] = self.best.test
            watch.metrics(epoch, metrics)
            if self.context.is_main:
                extra = {"epoch": epoch} | (
                    {"best_epoch": self.best.best_epoch} if self.routine.logs_best_epoch else {}
                )
                formats = self.routine.train_format, self.routine.metric_format
                append_line(self.folder / LOG, log_line(averages, metrics, extra, *formats))
                self.best.steps = self.place.steps
                self._write_progress()
            barrier()
        self.best.steps = self.place.steps
        self.place.epoch, self.place.step, self.place.series = epoch + 1, 0, {}

    def _checkpoint(self, epoch: int, metrics: dict[str, Metrics]) -> None:
        """Write ``checkpoint_NN.pth``, or ``checkpoint_best.pth`` where this epoch is the best so far."""
        name = f"checkpoint_{epoch:02d}.pth"
        if self.routine.best:
            score = sum(float(metrics["val"][metric]) for metric in self.routine.best) if self.context.is_main else 0.0
            score = broadcast_object(score)
            if not score > self.best.score:
                return
            self.best.score, self.best.best_epoch = score, epoch
            self.best.test = {metric: float(value) for metric, value in metrics.get("test", {}).items()}
            name = BEST
        content = published_content(self.trainer, self.config, epoch)
        if self.context.is_main:
            write_content(self.folder / name, content)
            prune_numbered(self.folder, self.settings.keep_last, epoch)

    def _finish_run(self) -> None:
        for split in self.routine.final_splits:
            self._evaluate(self.trainer.model, split, None)
        with self.trainer.parallel.whole():
            if self.context.is_main:
                self._write_samples(self.trainer.model)
        if self.context.is_main and self.routine.ends_with_best_epoch:
            append_line(self.folder / LOG, f"best epoch: {self.best.best_epoch}")

    # Evaluation

    def _evaluate_only(self, splits: tuple[Split, ...]) -> None:
        model = self._model(load=not self.options.checkpoint)
        if self.options.checkpoint:
            path = Path(self.options.checkpoint)
            load_model(model, read_training_checkpoint(path)["model"], path)
        metrics: dict[str, Metrics] = {split: self._evaluate(model, split, None) for split in splits}
        if not self.context.is_main:
            return
        if self.routine.evaluate_file:
            line = log_line({}, metrics, {}, metric_format=self.routine.metric_format)
            append_line(self.folder / self.routine.evaluate_file, line)
        for split, values in metrics.items():
            self._say(f"{split}: " + "  ".join(f"{name} {value:.4f}" for name, value in values.items()))
        self._write_samples(model)

    def _evaluate(self, model: nn.Module, split: Split, epoch: int | None) -> Metrics:
        """Metrics of a split; the random numbers of training do not notice."""
        trainer = getattr(self, "trainer", None)
        with contextlib.ExitStack() as stack:
            stack.enter_context(unchanged_random_state())
            stack.enter_context(torch.no_grad())
            stack.enter_context(Precision(self.settings.precision, self.context.device).autocast())
            if trainer is not None:
                stack.enter_context(trainer.parallel.whole())
            model.eval()
            metrics = self.task.evaluate(model, split, epoch)
        forget_sessions(model)
        self._tell_bad()
        return metrics

    def _write_samples(self, model: nn.Module) -> None:
        with (
            torch.no_grad(),
            unchanged_random_state(),
            Precision(self.settings.precision, self.context.device).autocast(),
        ):
            samples = self.task.samples(model.eval())
        if samples:
            write_json(self.folder / "samples.json", samples)

    # Start and state

    def _model(self, load: bool) -> nn.Module:
        """The model on the device, with the same values on every rank; ``load`` what it starts from."""
        model = self.task.prepared_model()
        if load:
            self.task.load_initial(model)
        return model.to(self.context.device)

    def _start(self, state: Path | None) -> None:
        """Load the state or checkpoint to go on from; else begin a new run."""
        log = self.folder / LOG
        self.place = resume.Place(broadcast_object(uuid.uuid4().hex), log.stat().st_size if log.is_file() else 0)
        self.best = resume.Best(self.place.run)
        if state is not None:
            self._load_state(state)
            return
        if self.context.is_main:
            (self.folder / HISTORY).unlink(missing_ok=True)
        if (self.folder / resume.FILE).is_file():
            self._say(f"{self.folder / resume.FILE} is not used and will be replaced: --resume auto goes on from there")
        if self.options.checkpoint:
            self.place.epoch = load_published(self.trainer, Path(self.options.checkpoint)) + 1
            self._say(f"resume checkpoint from {self.options.checkpoint}")

    def _state_file(self) -> Path | None:
        """The resume state to go on from, if any. ValueError on all ranks where only some of them see it."""
        if not self.options.resume:
            return None
        automatic = self.options.resume == "auto"
        path = self.folder / resume.FILE if automatic else Path(self.options.resume)
        found: list[bool] = broadcast_object(gather_objects(path.is_file()))
        if any(found) and not all(found):
            raise ValueError(f"resume={self.options.resume!r}: {path} is there for rank {found.index(True)}, but not for "
                             f"rank {found.index(False)}; expected the file on the machines of all ranks")  # fmt: skip
        return path if found[0] or not automatic else None

    def _load_state(self, path: Path) -> None:
        for name, (then, now) in resume.changed_settings(path, self.given).items():
            self._say(f"{name} was {then!r} when the state was saved and is {now!r} now")
        context = self.context
        self.place, self.best, exact = resume.load_state(path, self.trainer, context.rank, context.world_size)
        self._rescale_place(exact)
        self.best = broadcast_object(self._written_since() or self.best)
        if self.context.is_main:
            done = self.best.steps == self.place.steps
            forget_from(self.folder / LOG, self.place.epoch + done, start=self.place.log_start)
            forget_from(self.folder / HISTORY, self.place.epoch, self.place.step)
        self._say(f"resumed from {path}: epoch {self.place.epoch}, step {self.place.step}")
        barrier()

    def _written_since(self) -> resume.Best | None:
        """What ``progress.json`` says, if it is of just this place: the epoch was evaluated after its state was saved."""
        file = self.folder / "progress.json"
        if not file.is_file():
            return None
        content = json.loads(file.read_text(encoding="utf-8"))
        here = {"run": self.place.run, "steps": self.place.steps}
        return resume.Best(**content) if content | here == content else None

    def _rescale_place(self, exact: bool) -> None:
        """After a change of ranks, batch size or accumulation: the step up to which as many samples have been seen."""
        samples = self.samples_per_step
        if not exact or samples != self.place.samples:
            self.place.step = self.place.step * self.place.samples // samples
            self.place.series = {}
            self._say("the number of ranks or the batch has changed: the run goes on, but not to the same bits")

    @property
    def samples_per_step(self) -> int:
        """Of all ranks."""
        return self.task.batch_size * self.settings.accumulate * self.context.world_size

    def _save_state(self) -> None:
        self.place.samples, self.place.series = self.samples_per_step, self.log.all_series()
        path = self.folder / resume.FILE
        resume.save_state(path, self.trainer, self.place, self.best, self.given, self.context.is_main)

    def _write_progress(self) -> None:
        write_json(self.folder / "progress.json", dataclasses.asdict(self.best))

    def _model_fields(self, model: nn.Module) -> dict[str, Any]:
        config = getattr(model, "config", None)
        return config.to_dict() if config is not None else {}

    def _say(self, text: str) -> None:
        if self.context.is_main:
            self.context.console.print(text, highlight=False, markup=False, soft_wrap=True)


class NonFiniteStop(RuntimeError):
    """A loss was no number, the batch has been saved, and the run stops."""
