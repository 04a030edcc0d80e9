from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from blip_fast.tasks.base import Routine
from blip_fast.training import resume
from blip_fast.training.checkpoint import WriteError
from blip_fast.training.engine import NonFiniteStop, Outcome
from tests.training.common import ToyData, ToyTask, run, same, toy, weights

BEST_ROUTINE = Routine(splits=("val", "test"), best=("a", "b"), logs_best_epoch=True, evaluate_file="evaluate.txt")
LAST = "checkpoint_02.pth"


def log_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]


def scores(*values: float) -> list[dict[str, float]]:
    """Metrics of val and test, in turns; the sum of a and b is the value."""
    return [{"a": value / 2 + test, "b": value / 2 - test, "c": value} for value in values for test in (0, 1)]


def test_every_epoch_becomes_a_checkpoint_with_the_published_content(tmp_path: Path) -> None:
    task = toy(tmp_path)
    assert run(task) is Outcome.FINISHED
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == [
        "checkpoint_00.pth",
        "checkpoint_01.pth",
        LAST,
        "resume.pth",
    ]
    content = torch.load(tmp_path / LAST, weights_only=True)
    assert content.keys() == {"model", "optimizer", "config", "epoch"}
    assert (content["epoch"], content["config"]["init_lr"]) == (2, 0.01)
    assert content["optimizer"]["state"][0]["step"] == 18
    assert not same(weights(tmp_path / "checkpoint_00.pth"), weights(tmp_path / "checkpoint_01.pth"))


def test_data_is_told_the_epoch(tmp_path: Path) -> None:
    task, data, epochs = toy(tmp_path), ToyData(), []
    data.set_epoch = epochs.append  # type: ignore[attr-defined]
    task.train_data = lambda: data  # type: ignore[method-assign]
    run(task)
    assert epochs == [0, 1, 2]


def test_log_has_averages_as_strings(tmp_path: Path) -> None:
    task = toy(tmp_path)
    run(task)
    lines = log_lines(tmp_path)
    assert [list(line) for line in lines] == [["train_lr", "train_loss_first", "train_loss_second", "epoch"]] * 3
    assert [line["train_lr"] for line in lines] == ["0.010", "0.005", "0.003"]
    history = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["step"]) for line in history] == [(0, 0), (1, 0), (2, 0)]
    assert all(line["images_per_s"] > 0 and 0 < line["mfu"] < 1 for line in history[1:])


def test_the_best_epoch_is_kept_and_test_metrics_are_logged(tmp_path: Path) -> None:
    run(toy(tmp_path, scores(0.5, 0.9, 0.7), BEST_ROUTINE))
    assert not (tmp_path / LAST).exists()
    assert torch.load(tmp_path / "checkpoint_best.pth", weights_only=True)["epoch"] == 1
    lines = log_lines(tmp_path)
    assert [line["best_epoch"] for line in lines] == [0, 1, 1]
    assert [line["test_a"] for line in lines] == [1.25, 1.45, 1.35]


def test_retrieval_logs_the_test_metrics_of_the_best_epoch(tmp_path: Path) -> None:
    routine = Routine(splits=("val", "test"), best=("c",), test_of_best=True)
    run(toy(tmp_path, scores(0.5, 0.9, 0.7), routine))
    assert [line["test_a"] for line in log_lines(tmp_path)] == [1.25, 1.45, 1.45]


def test_nlvr_logs_strings_and_ends_with_the_best_epoch(tmp_path: Path) -> None:
    routine = Routine(
        splits=("val",), best=("c",), ends_with_best_epoch=True, train_format="{:.4f}", metric_format="{:.4f}"
    )
    run(toy(tmp_path, [{"c": 0.25}, {"c": 0.5}], routine, max_epoch=2))
    *lines, end = (tmp_path / "log.txt").read_text().splitlines()
    assert json.loads(lines[1])["val_c"] == "0.5000"
    assert json.loads(lines[1])["train_lr"] == "0.0050"
    assert end == "best epoch: 1"


def test_vqa_is_evaluated_after_the_last_epoch(tmp_path: Path) -> None:
    task = toy(tmp_path, [{}], Routine(final_splits=("test",)))
    run(task)
    assert task.evaluated == [("test", None)]
    assert (tmp_path / LAST).exists()


def test_evaluate_only_evaluates(tmp_path: Path) -> None:
    task = toy(tmp_path, scores(0.5), BEST_ROUTINE)
    run(task, evaluate=True)
    assert task.evaluated == [("val", None), ("test", None)]
    assert json.loads((tmp_path / "evaluate.txt").read_text()) == {
        "val_a": 0.25, "val_b": 0.25, "val_c": 0.5, "test_a": 1.25, "test_b": -0.75, "test_c": 0.5
    }  # fmt: skip
    assert not list(tmp_path.glob("*.pth"))


def test_programs_that_only_evaluate_never_train(tmp_path: Path) -> None:
    task = toy(tmp_path, [{}, {}], Routine(trains=False, splits=("val", "test")))
    run(task)
    assert task.steps == 0


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    run(toy(tmp_path, keep_last=1))
    assert [path.name for path in tmp_path.glob("checkpoint_*")] == [LAST]
    run(toy(tmp_path, keep_last=1, max_epoch=2))  # a longer run has been here before
    assert sorted(path.name for path in tmp_path.glob("checkpoint_*")) == ["checkpoint_01.pth", LAST]


def test_max_steps_ends_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    task = toy(tmp_path, max_steps=8)
    run(task)
    assert task.steps == 8
    assert (tmp_path / "checkpoint_01.pth").exists()
    assert not (tmp_path / LAST).exists()


class Interrupted(Exception):
    pass


def interrupt_at(task: ToyTask, step: int, how: Any) -> None:
    """Let ``how`` happen in the given step of the run."""
    losses = task.losses

    def interrupted(*arguments: Any) -> dict[str, Tensor]:
        if task.steps == step:
            task.steps += 1
            how()
        return losses(*arguments)

    task.losses = interrupted  # type: ignore[method-assign]


def crash() -> None:
    raise Interrupted


@pytest.mark.parametrize("step", [2, 6, 9, 17])
@pytest.mark.parametrize("settings", [{"save_every_steps": 2}, {"save_every_steps": 1, "accumulate": 2}, {}])
def test_a_crashed_run_goes_on_to_the_same_bits(tmp_path: Path, step: int, settings: dict[str, int]) -> None:
    run(toy(tmp_path / "whole", **settings))
    task = toy(tmp_path / "parts", **settings)
    interrupt_at(task, step, crash)
    with pytest.raises(Interrupted):
        run(task, resume="auto")
    run(toy(tmp_path / "parts", **settings), resume="auto")
    assert same(weights(tmp_path / "whole" / LAST), weights(tmp_path / "parts" / LAST))
    assert log_lines(tmp_path / "whole") == log_lines(tmp_path / "parts")


def test_a_crash_in_evaluation_evaluates_again(tmp_path: Path) -> None:
    run(toy(tmp_path / "whole", scores(0.5, 0.9, 0.7), BEST_ROUTINE))
    task = toy(tmp_path / "parts", scores(0.5), BEST_ROUTINE)  # has no metrics for the second epoch
    with pytest.raises(IndexError):
        run(task)
    resumed = toy(tmp_path / "parts", scores(0.9, 0.7), BEST_ROUTINE)
    run(resumed, resume="auto")
    assert resumed.evaluated == [("val", 1), ("test", 1), ("val", 2), ("test", 2)]
    assert log_lines(tmp_path / "whole") == log_lines(tmp_path / "parts")
    assert same(*(weights(tmp_path / name / "checkpoint_best.pth") for name in ("whole", "parts")))


def test_a_crash_in_the_last_evaluation_takes_no_more_steps(tmp_path: Path) -> None:
    task = toy(tmp_path, [], Routine(final_splits=("test",)), max_steps=8)  # has no metrics
    with pytest.raises(IndexError):
        run(task)
    for _ in range(2):
        resumed = toy(tmp_path, [{}], Routine(final_splits=("test",)), max_steps=8)
        run(resumed, resume="auto")
        assert (resumed.steps, resumed.evaluated) == (0, [("test", None)])
    assert torch.load(tmp_path / resume.FILE, weights_only=True)["place"]["steps"] == 8


def test_more_steps_than_the_run_had_are_evaluated_too(tmp_path: Path) -> None:
    run(toy(tmp_path, scores(0.5, 0.6), BEST_ROUTINE, max_steps=8))
    longer = toy(tmp_path, scores(0.9), BEST_ROUTINE, max_steps=10)
    run(longer, resume="auto")
    assert (longer.steps, longer.evaluated) == (2, [("val", 1), ("test", 1)])
    assert torch.load(tmp_path / "checkpoint_best.pth", weights_only=True)["optimizer"]["state"][0]["step"] == 10
    assert [(line["epoch"], line["val_c"]) for line in log_lines(tmp_path)] == [(0, 0.5), (1, 0.9)]


def test_an_older_state_does_not_know_what_came_later(tmp_path: Path) -> None:
    kept = tmp_path / "kept.pth"
    task = toy(tmp_path, scores(0.5, 0.9, 0.8), BEST_ROUTINE, save_every_steps=1)
    interrupt_at(task, 8, lambda: shutil.copy(tmp_path / resume.FILE, kept))
    run(task)
    again = toy(tmp_path, scores(0.6, 0.7), BEST_ROUTINE)
    run(again, resume=str(kept))
    assert again.evaluated == [("val", 1), ("test", 1), ("val", 2), ("test", 2)]
    assert [(line["epoch"], line["val_c"], line["best_epoch"]) for line in log_lines(tmp_path)] == [
        (0, 0.5, 0), (1, 0.6, 1), (2, 0.7, 2)
    ]  # fmt: skip


def test_a_resumed_run_leaves_the_log_of_earlier_runs_alone(tmp_path: Path) -> None:
    run(toy(tmp_path))
    task = toy(tmp_path)
    interrupt_at(task, 8, crash)
    with pytest.raises(Interrupted):
        run(task)
    run(toy(tmp_path), resume="auto")
    assert [line["epoch"] for line in log_lines(tmp_path)] == [0, 1, 2, 0, 1, 2]


def test_a_resumed_run_takes_and_tells_changed_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(toy(tmp_path, max_epoch=1))
    task = toy(tmp_path, weight_decay=0.5)
    task.context = dataclasses.replace(task.context, console=Console(width=300), seed=5)
    run(task, resume="auto")
    printed = capsys.readouterr().out
    assert "weight_decay was 0.05 when the state was saved and is 0.5 now" in printed
    assert "seed was 42 when the state was saved and is 5 now" in printed
    content = torch.load(tmp_path / resume.FILE, weights_only=True)
    assert content["optimizer"]["param_groups"][0]["weight_decay"] == 0.5


def test_sigterm_saves_and_ends_well(tmp_path: Path) -> None:
    run(toy(tmp_path / "whole"))
    task = toy(tmp_path / "parts")
    interrupt_at(task, 9, lambda: signal.raise_signal(signal.SIGTERM))
    assert run(task) is Outcome.INTERRUPTED
    assert torch.load(tmp_path / "parts" / resume.FILE, weights_only=True)["place"]["steps"] == 10
    assert run(toy(tmp_path / "parts"), resume="auto") is Outcome.FINISHED
    assert same(weights(tmp_path / "whole" / LAST), weights(tmp_path / "parts" / LAST))


def test_a_checkpoint_goes_on_after_its_epoch(tmp_path: Path) -> None:
    run(toy(tmp_path, max_epoch=1))
    task = toy(tmp_path)
    run(task, checkpoint=str(tmp_path / "checkpoint_00.pth"))
    assert task.steps == 12
    assert torch.load(tmp_path / LAST, weights_only=True)["optimizer"]["state"][0]["step"] == 18


def test_a_new_run_says_that_it_forgets_the_old_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(toy(tmp_path, max_epoch=1))
    again = toy(tmp_path, max_epoch=1)
    again.context = dataclasses.replace(again.context, console=Console(width=300))
    run(again)
    assert "resume.pth is not used and will be replaced: --resume auto goes on from there" in capsys.readouterr().out
    assert len(log_lines(tmp_path)) == 2  # as published, log.txt is appended to
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 1


def test_other_batches_go_on_at_the_same_sample(tmp_path: Path) -> None:
    task = toy(tmp_path, save_every_steps=4)
    interrupt_at(task, 4, crash)
    with pytest.raises(Interrupted):
        run(task)
    resumed = toy(tmp_path, accumulate=2)
    run(resumed, resume="auto")
    assert resumed.steps == (24 + 24 + 24 - 16) // 4


def test_a_loss_that_is_no_number_stops_the_run_and_leaves_its_batch(tmp_path: Path) -> None:
    task = toy(tmp_path, save_every_steps=1)
    task.poison_at = 8
    with pytest.raises(
        NonFiniteStop, match=r"loss_first is nan, loss_second is nan in step 2 of epoch 1; .* Its batch"
    ):
        run(task)
    found = torch.load(tmp_path / "nonfinite_epoch1_step2_rank0.pth", weights_only=True)
    assert found["batches"][0]["rows"].shape == (4, 4)
    assert (found["epoch"], found["step"], found["lr"]) == (1, 2, 0.005)
    assert torch.load(tmp_path / resume.FILE, weights_only=True)["place"]["steps"] == 8
    assert all(value.isfinite().all() for value in weights(tmp_path / resume.FILE).values())


def test_a_full_disk_leaves_the_last_good_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, calls = torch.save, []

    def full(content: Any, path: Path) -> None:
        calls.append(path)
        if len(calls) < 3:
            return save(content, path)
        path.write_bytes(b"the beginning of a file")
        raise RuntimeError("[enforce fail at inline_container.cc:603] . PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(WriteError, match=r"resume\.pth could not be written; the one before is still there"):
        run(toy(tmp_path, save_every_steps=1))
    assert torch.load(tmp_path / resume.FILE, weights_only=True)["place"]["steps"] == 2
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_broken_samples_are_counted_up_to_the_limit(tmp_path: Path) -> None:
    task = toy(tmp_path, max_bad_samples=1)
    collate = task.train_data().collate  # type: ignore[attr-defined]
    data = task.train_data()
    data.collate = lambda rows: dataclasses.replace(collate(rows), broken=("a.png: broken", "b.png: broken"))  # type: ignore[attr-defined]
    task.train_data = lambda: data  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="2 samples cannot be read, more than max_bad_samples=1"):
        run(task)


@pytest.mark.parametrize("evaluate", [False, True])
def test_samples_that_are_broken_in_evaluation_are_named(
    evaluate: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = toy(tmp_path, scores(0.5), BEST_ROUTINE, max_epoch=1)
    task.context = dataclasses.replace(task.context, console=Console(width=300))
    task.bad.limit, judge = 9, task.evaluate

    def judge_broken(model: torch.nn.Module, split: Any, epoch: int | None) -> Any:
        task.bad.add([f"{split}.png: broken", "both.png: broken"])
        return judge(model, split, epoch)

    task.evaluate = judge_broken  # type: ignore[method-assign]
    run(task, evaluate=evaluate)
    skipped = [line for line in capsys.readouterr().out.splitlines() if line.startswith("skipped: ")]
    assert skipped == [f"skipped: {name}.png: broken" for name in ("val", "both", "test")]


def test_what_cannot_be_gone_on_from_is_named(tmp_path: Path) -> None:
    run(toy(tmp_path, max_epoch=1))
    with pytest.raises(ValueError, match="it is no resume state; a checkpoint goes with --checkpoint"):
        run(toy(tmp_path), resume=str(tmp_path / "checkpoint_00.pth"))
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        run(toy(tmp_path), checkpoint=str(tmp_path / "absent.pth"))
    (tmp_path / resume.FILE).write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"damaged, or no checkpoint|no checkpoint of tensors"):
        run(toy(tmp_path), resume="auto")


def test_samples_are_written_at_the_end(tmp_path: Path) -> None:
    task = toy(tmp_path)
    run(task)
    model = task.build_model().eval()
    model.load_state_dict(weights(tmp_path / LAST))
    assert json.loads((tmp_path / "samples.json").read_text()) == task.samples(model)


def test_a_profile_is_a_trace(tmp_path: Path) -> None:
    run(toy(tmp_path, max_epoch=2), profile=True)
    trace = json.loads((tmp_path / "profile" / "trace_rank0.json").read_text())
    assert any("addmm" in event.get("name", "") for event in trace["traceEvents"])
