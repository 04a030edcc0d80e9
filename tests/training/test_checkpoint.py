from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from blip_fast import reference
from blip_fast.models import BlipConfig, BlipPretrain
from blip_fast.training.checkpoint import (
    load_optimizer,
    load_published,
    prune_numbered,
    published_content,
    read_training_checkpoint,
    write_content,
)
from blip_fast.training.settings import PretrainSettings
from blip_fast.training.trainer import Trainer
from tests.models.common import SIZES
from tests.training.test_trainer import pretrain_losses

CONFIG = BlipConfig(**SIZES)


def trainer(seed: int = 0) -> Trainer[int]:
    torch.manual_seed(seed)
    return Trainer(BlipPretrain(CONFIG).train(), pretrain_losses, PretrainSettings())


def published_run(seed: int = 0, steps: int = 2) -> tuple[reference.BlipPretrain, torch.optim.AdamW]:
    """The published program's model and optimizer after some steps."""
    torch.manual_seed(seed)
    model = reference.BlipPretrain(CONFIG).train()
    optimizer = torch.optim.AdamW(params=model.parameters(), lr=1e-3, weight_decay=0.05)
    published_steps(model, optimizer, range(steps))
    return model, optimizer


def published_steps(model: Any, optimizer: torch.optim.AdamW, steps: Any) -> None:
    for step in steps:
        optimizer.zero_grad()
        sum(pretrain_losses(model, step, 0.4).values()).backward()  # type: ignore[union-attr]
        optimizer.step()


def save(path: Path, network: torch.nn.Module, optimizer: torch.optim.Optimizer, **more: Any) -> Path:
    content = {
        "model": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "config": {"vit": "base"},
        "epoch": 3,
    }
    torch.save(content | more, path)
    return path


def test_a_published_checkpoint_goes_on_as_published(tmp_path: Path) -> None:
    model, optimizer = published_run()
    ours = trainer(seed=1)
    assert load_published(ours, save(tmp_path / "checkpoint_03.pth", model, optimizer)) == 3
    assert ours.optimizer.copies_behind
    published_steps(model, optimizer, range(2, 4))
    for step in range(2, 4):
        ours.step((step,), 1e-3, 0.4)
    model.update_momentum()
    for name, tensor in model.state_dict().items():
        if not name.endswith(("qkv.bias", "key.bias")):  # the true gradient of keys' biases is zero
            torch.testing.assert_close(ours.model.state_dict()[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_the_published_program_goes_on_from_ours(tmp_path: Path) -> None:
    ours = trainer()
    ours.step((0,), 1e-3, 0.4)
    write_content(tmp_path / "checkpoint_00.pth", published_content(ours, {"vit": "base"}, 0))
    content = torch.load(tmp_path / "checkpoint_00.pth", weights_only=True)
    model = reference.BlipPretrain(CONFIG)
    model.load_state_dict(content["model"])
    optimizer = torch.optim.AdamW(params=model.parameters(), lr=1e-3, weight_decay=0.05)
    optimizer.load_state_dict(content["optimizer"])
    published_steps(model, optimizer, [1])
    ours.step((1,), 1e-3, 0.4)
    weight = "text_encoder.embeddings.word_embeddings.weight"
    torch.testing.assert_close(model.state_dict()[weight], ours.model.state_dict()[weight], rtol=1e-3, atol=1e-4)
    assert BlipPretrain.from_pretrained(tmp_path / "checkpoint_00.pth").config.vit_width == CONFIG.vit_width


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    model, optimizer = published_run(steps=1)
    state = model.state_dict()
    other = {**state, "vision_proj.weight": torch.zeros(3, 3)}
    with pytest.raises(ValueError, match=r"1 tensors are missing or have another shape, 'vision_proj\.weight' first"):
        load_published(trainer(), save(tmp_path / "a.pth", model, optimizer, model=other))
    missing = {name: tensor for name, tensor in state.items() if name != "temp"}
    with pytest.raises(ValueError, match="'temp' first"):
        load_published(trainer(), save(tmp_path / "b.pth", model, optimizer, model=missing))
    torch.save({"model": state}, tmp_path / "c.pth")
    with pytest.raises(ValueError, match="has no 'optimizer': it holds a model only"):
        load_published(trainer(), tmp_path / "c.pth")
    foreign = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    foreign.param_groups[0]["params"][0].grad = torch.ones(2)
    foreign.step()
    with pytest.raises(ValueError, match="optimizer state for other parameters"):
        load_optimizer(trainer().optimizer, foreign.state_dict(), Path("d.pth"))


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("run",))


def test_other_pickles_and_damaged_files_are_refused(tmp_path: Path) -> None:
    torch.save({"model": Hostile()}, tmp_path / "hostile.pth")
    with pytest.raises(ValueError, match="other pickles are not loaded"):
        read_training_checkpoint(tmp_path / "hostile.pth")
    whole = save(tmp_path / "whole.pth", *published_run(steps=0)).read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.pth (is damaged|is no checkpoint)"):
        read_training_checkpoint(tmp_path / "cut.pth")
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="expected a dictionary with 'model'"):
        read_training_checkpoint(tmp_path / "list.pth")


def test_only_numbered_checkpoints_are_pruned(tmp_path: Path) -> None:
    names = ["checkpoint_09.pth", "checkpoint_10.pth", "checkpoint_100.pth", "checkpoint_best.pth", "resume.pth"]
    for name in names:
        (tmp_path / name).touch()
    prune_numbered(tmp_path, 0, 100)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    prune_numbered(tmp_path, 1, 10)  # 100 is of an earlier, longer run
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])
    prune_numbered(tmp_path, 1, 100)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[2:])
