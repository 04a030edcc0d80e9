from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from webdataset import TarWriter

from blip_fast import reference
from blip_fast.config import BlipConfig
from blip_fast.tasks.base import RunContext
from blip_fast.tasks.pretrain import PretrainTask
from blip_fast.training.engine import Engine, RunOptions
from blip_fast.training.loop import epoch_batches
from blip_fast.training.settings import PretrainSettings
from tests.models.common import SIZES

FIELDS = {name: value for name, value in SIZES.items() if name not in ("image_size", "queue_size")} | {
    "vocab_size": 30524
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("first", "second", "laion/a", "laion/b"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        entries = []
        for number in range(2):
            picture = tmp_path / f"{name.replace('/', '_')}{number}.png"
            Image.new("RGB", (8, 8), (60 * number, 0, 0)).save(picture)
            entries.append({"image": str(picture), "caption": f"{name.split('/')[-1]} {number}"})
        (tmp_path / f"{name}.json").write_text(json.dumps(entries))
    return tmp_path


def task(folder: Path, **more: Any) -> PretrainTask:
    files = [str(folder / "first.json"), str(folder / "second.json")]
    values: dict[str, Any] = dict(
        train_file=files, image_size=16, queue_size=16, batch_size=2, workers=0, init_vit="", init_bert="", model=FIELDS
    )
    return PretrainTask(PretrainSettings(**values | more), RunContext(output_dir=folder, console=Console(quiet=True)))


def captions(task: PretrainTask, epoch: int) -> list[str]:
    batches, _ = epoch_batches(task, task.train_data(), epoch)
    return sorted(caption for batch in batches for caption in batch.captions)


def test_published_lists_hold_full_paths_and_large_ones_take_turns(folder: Path) -> None:
    fixed = ["first 0", "first 1", "second 0", "second 1"]
    assert captions(task(folder), 3) == fixed
    rotating = task(folder, laion_path=str(folder / "laion"))
    for epoch, name in enumerate("aba"):
        assert captions(rotating, epoch) == sorted([*fixed, f"{name} 0", f"{name} 1"])
    with pytest.raises(ValueError, match=r"has no \.json files"):
        task(folder, laion_path=str(folder / "first.json")).train_data()


def test_shards_stand_beside_lists_or_in_their_place(folder: Path) -> None:
    with TarWriter(str(folder / "web.tar")) as shard:
        shard.write({"__key__": "0", "png": Image.new("RGB", (8, 8)), "txt": "of a shard"})
    lists = ["first 0", "first 1", "second 0", "second 1"]
    both = task(folder, shards=[str(folder / "*.tar")], batch_size=5)
    assert captions(both, 0) == [*lists[:2], "of a shard", *lists[2:]]
    assert both.files() == [Path("/"), folder / "first.json", folder / "second.json", folder / "web.tar"]
    alone = task(folder, shards=[str(folder / "*.tar")], train_file=[], batch_size=1)
    assert captions(alone, 0) == ["of a shard"]
    assert alone.files() == [folder / "web.tar"]


def test_files_are_everything_that_is_read(folder: Path) -> None:
    names = [Path("/"), folder / "first.json", folder / "second.json", folder / "laion"]
    assert task(folder, laion_path=str(folder / "laion")).files() == names


def test_schedules_are_the_published_ones(folder: Path) -> None:
    pretraining = task(folder)
    assert pretraining.learning_rate(0, 1500, 10**4) == pytest.approx(0.00015049999999999997)
    assert pretraining.learning_rate(2, 7, 10**4) == pytest.approx(0.000243)
    assert [pretraining.alpha(epoch, 5, 10) for epoch in range(3)] == pytest.approx([0.1, 0.3, 0.4])


def test_losses_are_named_as_in_the_published_log(folder: Path) -> None:
    pretraining = task(folder)
    model = pretraining.build_model().train()
    batches, _ = epoch_batches(pretraining, pretraining.train_data(), 0)
    losses = pretraining.losses(model, next(batches), 0.4)
    assert list(losses) == ["loss_ita", "loss_itm", "loss_lm"]
    assert all(loss.requires_grad for loss in losses.values())


def test_samples_are_captions_of_the_first_pictures(folder: Path) -> None:
    pretraining = task(folder)
    model = pretraining.build_model().eval()
    assert pretraining.samples(model) == []
    pretraining.train_data()
    (folder / "first1.png").write_text("no picture")
    found = pretraining.samples(model)
    assert [sample["in the training data"] for sample in found] == ["first 0", "second 0", "second 1"]
    assert all(Path(sample["picture"]).is_file() and isinstance(sample["generated"], str) for sample in found)


def test_batches_of_fixed_shape_have_the_same_losses(folder: Path) -> None:
    pretraining = task(folder, batch_size=4)
    model = pretraining.build_model().eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batch = next(epoch_batches(pretraining, pretraining.train_data(), 0)[0])
    fixed = pretraining.fixed_shape(batch)
    assert (fixed.texts.input_ids.shape[0] % 8, fixed.texts.max_length, fixed.captions) == (0, 16, ())
    negatives = (torch.arange(4).roll(1), torch.arange(4).roll(-1))
    found = []
    for texts in (batch.texts, fixed.texts):
        model.load_state_dict(state)
        found.append(model(batch.images, texts, alpha=0.4, negatives=negatives).loss)
    assert found[1].item() == pytest.approx(found[0].item(), rel=1e-5)


def test_a_run_starts_from_what_the_settings_name(folder: Path) -> None:
    source = reference.BlipPretrain(BlipConfig(**SIZES | FIELDS))
    source.save_pretrained(folder / "start.pth", "published")
    pretraining = task(folder, pretrained=str(folder / "start.pth"))
    model = pretraining.build_model()
    pretraining.load_initial(model)
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    with pytest.raises(FileNotFoundError, match="no-such-vit"):
        task(folder, init_vit="no-such-vit.pth").load_initial(model)
    vit = {name.removeprefix("visual_encoder."): tensor for name, tensor in source.state_dict().items()
           if name.startswith("visual_encoder.")}  # fmt: skip
    torch.save(vit, folder / "vit.pth")
    fresh = task(folder, init_vit=str(folder / "vit.pth"))
    model = fresh.build_model()
    fresh.load_initial(model)
    for name in ("visual_encoder.pos_embed", "visual_encoder_m.pos_embed"):
        assert torch.equal(model.state_dict()[name], vit["pos_embed"])


@pytest.mark.parametrize("mode", ["full", "selective"])
def test_activation_checkpointing_changes_no_bits(folder: Path, mode: str) -> None:
    states = []
    for name, settings in (("plain", {}), (mode, dict(vit_grad_ckpt=True, vit_ckpt_layer=1, recompute=mode))):
        pretraining = task(folder, max_steps=2, tensorboard=False, **settings)
        pretraining.context = dataclasses.replace(pretraining.context, output_dir=folder / name)
        torch.manual_seed(0)
        engine = Engine(pretraining, RunOptions())
        engine.run()
        modes = [block.recompute for block in engine.trainer.model.visual_encoder.blocks]
        assert modes == ([None, None] if name == "plain" else [None, mode])
        states.append(engine.trainer.model.state_dict())
    for name, tensor in states[0].items():
        assert torch.equal(states[1][name], tensor), name
