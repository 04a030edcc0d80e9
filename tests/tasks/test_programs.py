"""Each program on the miniature data sets, in this process: what it reads, learns from and writes."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from blip_fast.data.loader import make_loader
from blip_fast.data.sampling import EpochSampler
from blip_fast.tasks.base import RunContext, Task
from blip_fast.tasks.captions import CaptionTask, NoCapsTask
from blip_fast.tasks.nlvr import NLVRTask
from blip_fast.tasks.retrieval import RetrievalTask
from blip_fast.tasks.retrieval_video import VideoRetrievalTask
from blip_fast.tasks.vqa import VQATask
from tests.tasks import miniature

FINE_TUNING = {"retrieval": RetrievalTask, "caption": CaptionTask, "vqa": VQATask, "nlvr": NLVRTask}
PROGRAMS: dict[str, type[Task]] = {**FINE_TUNING, "nocaps": NoCapsTask, "retrieval_video": VideoRetrievalTask}
RECALLS = "txt_r1 txt_r5 txt_r10 txt_r_mean img_r1 img_r5 img_r10 img_r_mean r_mean"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.build(tmp_path_factory.mktemp("miniature"))


def make(program: str, folder: Path, output: Path, **more: Any) -> Task:
    """The task, its console a string, with settings of the miniature."""
    task_class = PROGRAMS[program]
    settings = task_class.settings_class.model_validate(miniature.overrides(folder, program) | more)
    return task_class(settings, RunContext(output_dir=output, console=Console(file=io.StringIO())))


def model_of(task: Task) -> torch.nn.Module:
    torch.manual_seed(0)
    return task.build_model()


@pytest.mark.parametrize("program", PROGRAMS)
def test_files_exist(program: str, folder: Path, tmp_path: Path) -> None:
    task = make(program, folder, tmp_path)
    assert task.name == program
    files = task.files()
    assert len(files) > 1
    assert all(file.exists() for file in files)


@pytest.mark.parametrize("program", FINE_TUNING)
def test_a_step_lowers_the_loss(program: str, folder: Path, tmp_path: Path) -> None:
    task = make(program, folder, tmp_path, model=miniature.MODEL | dict(hidden_dropout=0.0, attention_dropout=0.0))
    data = task.train_data()
    sampler = EpochSampler(len(data), task.batch_size)
    batch = task.to_device(next(iter(make_loader(data, sampler, workers=0))))
    model = model_of(task).train()
    model.momentum_in_forward = False
    queues = {name: buffer.clone() for name, buffer in model.named_buffers()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    values = []
    for _ in range(4):
        torch.manual_seed(1)
        model.load_state_dict(queues, strict=False)
        losses = task.losses(model, batch, 0.0)
        assert list(losses) == (["loss_itm", "loss_ita"] if program == "retrieval" else ["loss"])
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        values.append(float(total.detach()))
    assert values[-1] < values[0]


def test_published_schedules(folder: Path, tmp_path: Path) -> None:
    for program in FINE_TUNING:
        task = make(program, folder, tmp_path, init_lr=1e-4, min_lr=1e-6, max_epoch=4)
        rates = [task.learning_rate(epoch, 3, 10) for epoch in range(4)]
        expected = [(1e-4 - 1e-6) * 0.5 * (1 + math.cos(math.pi * epoch / 4)) + 1e-6 for epoch in range(4)]
        assert rates == pytest.approx(expected)
    task = make("retrieval", folder, tmp_path)
    assert [task.alpha(0, step, 4) for step in range(4)] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert task.alpha(1, 0, 4) == 0.4
    assert make("caption", folder, tmp_path).alpha(1, 0, 4) == 0.0


@pytest.mark.parametrize("dataset", ["coco", "flickr"])
def test_retrieval(dataset: str, folder: Path, tmp_path: Path) -> None:
    task = make("retrieval", folder, tmp_path, dataset=dataset)
    model = model_of(task).eval()
    metrics = task.evaluate(model, "val", 0)
    assert list(metrics) == RECALLS.split()
    assert metrics["img_r5"] <= 100.0
    data = task.eval_data("val")
    assert (len(data), len(data.texts)) == (miniature.EVAL, 2 * miniature.EVAL)
    samples = task.samples(model)
    assert all(sample["found"] in data.texts and Path(sample["picture"]).is_file() for sample in samples)


def test_caption(folder: Path, tmp_path: Path) -> None:
    task = make("caption", folder, tmp_path)
    model = model_of(task).eval()
    metrics = task.evaluate(model, "test", 3)
    assert list(metrics) == ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"]
    entries = json.loads((tmp_path / "result" / "test_epoch3.json").read_text())
    assert [entry["image_id"] for entry in entries] == [300, 301, 302, 303, 304]
    assert all(set(entry) == {"image_id", "caption"} for entry in entries)
    assert (tmp_path / "result" / "test_epoch3_rank0.json").exists()
    assert task.prompt_length == 4
    task.evaluate(model, "test", None)
    assert (tmp_path / "result" / "test_epoch0.json").exists()
    assert task.context.console.file.getvalue().count("own tokenisation") == 1
    sample = task.samples(model)[0]
    assert sample["true"] == task.references("val")[200][0]
    assert Path(sample["picture"]).is_file()


def test_references_are_those_of_the_annotations_without_a_folder_of_their_own(folder: Path, tmp_path: Path) -> None:
    task = make("caption", folder, tmp_path)
    assert make("caption", folder, tmp_path, coco_gt_root="").references("val") == task.references("val")


@pytest.mark.parametrize("references", ["coco_gt", "annotations"])
def test_images_without_an_entry_are_not_scored(references: str, tmp_path: Path) -> None:
    folder = miniature.build(tmp_path)
    file = folder / "annotation" / "coco_karpathy_val.json"
    entries = json.loads(file.read_text())
    flat = [{"image": entry["image"], "caption": text} for entry in entries[2:] for text in entry["caption"]]
    file.write_text(json.dumps([entries[0], {"caption": ["malformed"]}, *flat]))  # one caption an entry, too
    more = {"coco_gt_root": ""} if references == "annotations" else {}
    task = make("caption", folder, tmp_path / "output", **more)
    assert task.references("val") == {
        number: entry["caption"] for number, entry in enumerate(entries, 200) if number != 201
    }
    assert "CIDEr" in task.evaluate(model_of(task).eval(), "val", 0)
    assert len(task.bad) == 1


def test_nocaps(folder: Path, tmp_path: Path) -> None:
    task = make("nocaps", folder, tmp_path)
    model = model_of(task).eval()
    assert task.evaluate(model, "val", None) == {}
    task.evaluate(model, "test", None)
    entries = {split: json.loads((tmp_path / "result" / f"{split}.json").read_text()) for split in ("val", "test")}
    assert [entry["image_id"] for entry in entries["val"]] == [200, 201, 202, 203, 204]
    assert [entry["image_id"] for entry in entries["test"]] == [300, 301, 302, 303, 304]


@pytest.mark.parametrize("inference", ["rank", "generate"])
def test_vqa(inference: str, folder: Path, tmp_path: Path) -> None:
    task = make("vqa", folder, tmp_path, inference=inference)
    model = model_of(task).eval()
    assert task.evaluate(model, "test", None) == {}
    entries = json.loads((tmp_path / "result" / "vqa_result.json").read_text())
    assert [entry["question_id"] for entry in entries] == [300, 301, 302, 303, 304]
    if inference == "rank":
        assert {entry["answer"] for entry in entries} <= {"a person", "a man", "people", "a cat"}
    samples = task.samples(model)
    assert [sample["answer"] for sample in samples] == [entry["answer"] for entry in entries]
    assert Path(samples[0]["picture"]).is_file()


def test_nlvr(folder: Path, tmp_path: Path) -> None:
    task = make("nlvr", folder, tmp_path, numerics="sane")
    model = model_of(task).eval()
    always_true = {name: torch.zeros_like(value) for name, value in model.cls_head.state_dict().items()}
    always_true["2.bias"] = torch.tensor([0.0, 1.0])
    model.cls_head.load_state_dict(always_true)
    assert task.evaluate(model, "val", 0) == {"acc": 3 / 5}  # labels alternate and begin with true


def test_sides_change_in_published_evaluation(folder: Path, tmp_path: Path) -> None:
    swaps = [make("nlvr", folder, tmp_path, numerics=name).eval_data("val").swap for name in ("published", "sane")]
    assert swaps == [True, False]


def test_each_sample_is_on_one_rank(folder: Path, tmp_path: Path) -> None:
    task = make("retrieval", folder, tmp_path)
    ranked = [type(task)(task.settings, RunContext(rank=rank, world_size=2, output_dir=tmp_path)) for rank in (0, 1)]
    assert [index for part in ranked for index in part.own_shard(range(5))] == [0, 1, 2, 3, 4]


def test_retrieval_video(folder: Path, tmp_path: Path) -> None:
    task = make("retrieval_video", folder, tmp_path)
    metrics = task.evaluate(model_of(task).eval(), "test", None)
    names = RECALLS.replace("img", "vid").replace("vid_r_mean", "vid_r_mean vid_mdR").split()
    assert list(metrics) == names
    assert json.loads((tmp_path / "test_result.txt").read_text()) == metrics


def test_a_broken_picture_is_counted_in_evaluation(folder: Path, tmp_path: Path) -> None:
    task = make("nocaps", folder, tmp_path, image_root=str(tmp_path / "images"), max_bad_samples=9)
    (tmp_path / "images").mkdir()
    task.evaluate(model_of(task).eval(), "val", None)
    assert len(task.bad) == miniature.EVAL
    assert len(json.loads((tmp_path / "result" / "val.json").read_text())) == miniature.EVAL
    task = make("nocaps", folder, tmp_path, image_root=str(tmp_path / "images"), max_bad_samples=2)
    with pytest.raises(RuntimeError, match="more than max_bad_samples=2"):
        task.evaluate(model_of(task).eval(), "val", None)
