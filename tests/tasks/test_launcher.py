"""The command line on the miniature data sets: train, kill, resume and evaluate every program, in one and two processes."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tasks import miniature
from tests.tasks.commands import train

STEPS = miniature.TRAIN // 2  # of an epoch, on one rank
# What --evaluate appends its line to, and the result file of programs that write one.
EVALUATED = {
    "retrieval": "evaluate.txt",
    "caption": "evaluate.txt",
    "nlvr": "log.txt",
    "vqa": "result/vqa_result.json",
    "nocaps": "result/test.json",
    "retrieval_video": "test_result.txt",
}
TRAINING = ["pretrain", "retrieval", "caption", "vqa", "nlvr"]
FINE_TUNING = TRAINING[1:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.build(tmp_path_factory.mktemp("miniature"))


@pytest.fixture(scope="module")
def settings_of(folder: Path) -> Callable[..., dict[str, Any]]:
    def settings(program: str, **more: Any) -> dict[str, Any]:
        rate = {"init_lr": 1e-3} if program in TRAINING else {}
        return miniature.overrides(folder, program) | rate | more

    return settings


@pytest.fixture(scope="module")
def trained(folder: Path, settings_of: Callable[..., dict[str, Any]]) -> Callable[[str], Path]:
    """Output folder of a program that has been trained by one process without a stop; each is trained once."""

    @functools.cache
    def output(program: str) -> Path:
        path = folder / "trained" / program
        train(program, settings_of(program), path)
        return path

    return output


def checkpoint(output: Path) -> Path:
    """The last epoch's, or the best one's where only that is written."""
    numbered = sorted(output.glob("checkpoint_0*.pth"))
    return numbered[-1] if numbered else output / "checkpoint_best.pth"


def log(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "log.txt").read_text().splitlines() if line.startswith("{")]


def assert_same_run(output: Path, other: Path) -> None:
    assert (output / "log.txt").read_text() == (other / "log.txt").read_text()
    content, expected = (torch.load(checkpoint(path), weights_only=True) for path in (output, other))
    assert content["epoch"] == expected["epoch"]
    assert content["model"].keys() == expected["model"].keys()
    for name, tensor in expected["model"].items():
        assert torch.equal(content["model"][name], tensor), name


@pytest.mark.parametrize("program", TRAINING)
def test_a_killed_run_goes_on_to_the_same_bits(
    program: str, trained: Callable[[str], Path], settings_of: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    settings, output = settings_of(program, save_every_steps=1), tmp_path / program
    train(program, settings, output, die_after=STEPS + 2)
    assert len(log(output)) == 1
    assert "resumed" in train(program, settings, output, "--resume", "auto")
    assert_same_run(output, trained(program))
    assert [line["epoch"] for line in log(output)] == [0, 1]


@pytest.mark.parametrize("program", TRAINING)
def test_two_processes_are_killed_and_go_on(
    program: str, settings_of: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    settings, output = settings_of(program, save_every_steps=1), tmp_path / program
    train(program, settings, output, ranks=2, die_after=STEPS // 2 + 1)
    train(program, settings, output, "--resume", "auto", ranks=2)
    assert [line["epoch"] for line in log(output)] == [0, 1]
    if program == "retrieval":  # in which ranks also exchange negatives
        train(program, settings_of(program), tmp_path / "straight", ranks=2)
        assert_same_run(output, tmp_path / "straight")


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("program", FINE_TUNING)
def test_evaluation_gives_the_numbers_of_training(
    ranks: int,
    program: str,
    trained: Callable[[str], Path],
    settings_of: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    source, output = trained(program), tmp_path / program
    train(program, settings_of(program, pretrained=str(checkpoint(source))), output, "--evaluate", ranks=ranks)
    assert not list(output.glob("*.pth"))
    found = json.loads((output / EVALUATED[program]).read_text().splitlines()[0])
    if program == "vqa":
        assert found == json.loads((source / EVALUATED[program]).read_text())
        return
    epoch = torch.load(checkpoint(source), weights_only=True)["epoch"]
    line = log(source)[epoch]
    assert found == {name: value for name, value in line.items() if name.startswith(("val_", "test_"))}


@pytest.mark.parametrize(("program", "head"), [("nocaps", "caption"), ("retrieval_video", "retrieval")])
def test_programs_that_only_evaluate(
    program: str,
    head: str,
    trained: Callable[[str], Path],
    settings_of: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    settings = settings_of(program, pretrained=str(checkpoint(trained(head))))
    found = []
    for ranks in (1, 2):
        train(program, settings, tmp_path / str(ranks), ranks=ranks)
        found.append(json.loads((tmp_path / str(ranks) / EVALUATED[program]).read_text()))
    assert found[0] == found[1]


@pytest.mark.parametrize("program", FINE_TUNING)
def test_fine_tuning_starts_from_pre_training(
    program: str, trained: Callable[[str], Path], settings_of: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """With other picture sizes: position embeddings are interpolated; NLVR2 duplicates the cross-attention."""
    source = checkpoint(trained("pretrain"))
    settings = settings_of(program, pretrained=str(source), image_size=48, init_lr=0.0, max_epoch=1, max_steps=1)
    train(program, settings | dict(weight_decay=0.0), tmp_path / program)
    before = torch.load(source, weights_only=True)["model"]
    after = torch.load(checkpoint(tmp_path / program), weights_only=True)["model"]
    assert after["visual_encoder.pos_embed"].shape[1] == 10 != before["visual_encoder.pos_embed"].shape[1]
    assert torch.equal(
        after["visual_encoder.blocks.0.attn.qkv.weight"], before["visual_encoder.blocks.0.attn.qkv.weight"]
    )
    if program == "nlvr":
        name = "text_encoder.encoder.layer.0.crossattention.self.query.weight"
        for image in ("self0", "self1"):
            assert torch.equal(after[name.replace(".self.", f".{image}.")], before[name])


def test_shards_are_trained_and_evaluated_as_copies_are(
    settings_of: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    for strategy in ("ddp", "fsdp"):  # captions are generated: parameters are read outside of the forward pass
        train("caption", settings_of("caption", strategy=strategy), tmp_path / strategy, ranks=2)
    assert log(tmp_path / "ddp") == log(tmp_path / "fsdp")
    for result in ("val_epoch1.json", "test_epoch0.json"):
        ddp, fsdp = (json.loads((tmp_path / name / "result" / result).read_text()) for name in ("ddp", "fsdp"))
        assert ddp == fsdp


def torchrun(program: str, settings: dict[str, Any], output: Path, *flags: str) -> subprocess.Popen[str]:
    overrides = [part for name, value in settings.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=1"]
    command += ["-m", "blip_fast.train", program, "--output_dir", str(output), "--device", "cpu", *flags, *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def test_torchrun_starts_again_where_a_rank_died(settings_of: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    settings = settings_of("retrieval")
    train("retrieval", settings, tmp_path / "straight", ranks=2)
    output = tmp_path / "killed"
    run = torchrun("retrieval", settings | {"save_every_steps": 1}, output, "--resume", "auto")
    deadline = time.monotonic() + 120
    while not (output / "resume.pth").exists() and time.monotonic() < deadline and run.poll() is None:
        time.sleep(0.01)
    os.kill(children(run.pid)[0], signal.SIGKILL)
    printed, _ = run.communicate(timeout=200)
    assert run.returncode == 0, printed
    assert "resumed from" in printed
    assert_same_run(output, tmp_path / "straight")


def test_torchrun(
    trained: Callable[[str], Path], settings_of: Callable[..., dict[str, Any]], folder: Path, tmp_path: Path
) -> None:
    settings = settings_of("nocaps", pretrained=str(checkpoint(trained("caption"))))
    train("nocaps", settings, tmp_path / "alone")
    run = torchrun("nocaps", settings, tmp_path / "two")
    printed, _ = run.communicate(timeout=200)
    assert run.returncode == 0, printed
    results = [(tmp_path / name / "result" / "test.json").read_text() for name in ("alone", "two")]
    assert results[0] == results[1]
    assert (tmp_path / "two" / "result" / "test_rank1.json").exists()
