from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from blip_fast.data.pretrain import PretrainData
from blip_fast.data.tokenizer import load_tokenizer
from blip_fast.data.transforms import eval_transform
from blip_fast.tasks.pretrain import PassSampler, PretrainSettings, pretrain
from blip_fast.training.meters import MetricLog

SETTINGS = PretrainSettings(total_steps=6, batch_size=2, max_tokens=5, workers=0)
CPU = torch.device("cpu")


@dataclasses.dataclass
class Losses:
    loss_itc: Tensor
    loss_itm: Tensor
    loss_lm: Tensor


class Recorder(nn.Module):
    """Stands in for the model: remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.calls: list[dict[str, Any]] = []

    def forward(self, image: Tensor, input_ids: Tensor, attention_mask: Tensor, alpha: float) -> Losses:
        self.calls.append({"image": image, "ids": input_ids, "mask": attention_mask, "alpha": alpha})
        return Losses(self.weight.sum() * 2, self.weight.sum() * 3, self.weight.sum() * 4)


@pytest.fixture
def pairs(tmp_path: Path) -> PretrainData:
    entries = []
    for number in range(4):
        Image.new("RGB", (8, 8), (60 * number, 0, 0)).save(tmp_path / f"{number}.png")
        entries.append({"image": f"{number}.png", "caption": "a " * number + "cat"})
    (tmp_path / "pairs.json").write_text(json.dumps(entries))
    return PretrainData([tmp_path / "pairs.json"], tmp_path, eval_transform(8))


def run(pairs: PretrainData, settings: PretrainSettings, seed: int = 0) -> tuple[Recorder, MetricLog, Any]:
    model = Recorder()
    generator = torch.Generator().manual_seed(seed)
    log, broken = pretrain(model, load_tokenizer(), pairs, settings, CPU, generator, lambda report, log: None)
    return model, log, broken


def test_model_gets_images_padded_texts_and_the_alpha_of_the_step(pairs: PretrainData) -> None:
    model, log, broken = run(pairs, SETTINGS)
    assert [call["alpha"] for call in model.calls] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.4])
    for call in model.calls:
        assert call["image"].shape == (2, 3, 8, 8)
        assert call["ids"].shape == call["mask"].shape == (2, 5)
        assert (call["ids"][:, 0] == 101).all()
        assert ((call["ids"] == 0) == (call["mask"] == 0)).all()
    assert log.series("itm")[0] == 3.0
    assert log.series("lr")[:2] == pytest.approx([1e-6, 1e-6 + (3e-4 - 1e-6) / 3000])
    assert not broken.messages


def test_order_of_pairs_follows_the_generator(pairs: PretrainData) -> None:
    def seen(seed: int) -> list[list[int]]:
        return [call["mask"].sum(1).tolist() for call in run(pairs, SETTINGS, seed)[0].calls]

    assert seen(1) == seen(1)
    assert seen(1) != seen(2)


def test_an_epoch_is_as_many_passes_as_asked(pairs: PretrainData) -> None:
    settings = dataclasses.replace(SETTINGS, passes_per_epoch=2, warmup_steps=2, init_lr=1.0, lr_decay_rate=0.5)
    _, log, _ = run(pairs, settings)
    assert log.series("lr") == pytest.approx([1e-6, 0.5, 1.0, 1.0, 0.5, 0.5], abs=1e-5)


def test_every_pass_holds_every_sample_once() -> None:
    sampler = PassSampler(5, 3, torch.Generator().manual_seed(0))
    indices = list(sampler)
    assert len(sampler) == len(indices) == 15
    passes = [indices[start : start + 5] for start in (0, 5, 10)]
    assert all(sorted(one) == [0, 1, 2, 3, 4] for one in passes)
    assert passes[0] != passes[1]


def test_broken_pictures_are_counted_once_each(pairs: PretrainData) -> None:
    (pairs.image_root / "1.png").write_text("no picture")
    _, _, broken = run(pairs, SETTINGS)
    assert [message.split(":")[0] for message in broken.messages] == ["1.png"]
    with pytest.raises(RuntimeError, match=r"more than max_broken_images=0; the last: 1\.png"):
        run(pairs, dataclasses.replace(SETTINGS, max_broken_images=0))


def test_worker_processes_report_broken_pictures_and_order_alike(pairs: PretrainData) -> None:
    (pairs.image_root / "1.png").write_text("no picture")
    settings = dataclasses.replace(SETTINGS, total_steps=2)
    alone, _, _ = run(pairs, settings)
    model, _, broken = run(pairs, dataclasses.replace(settings, workers=1))
    assert len(broken.messages) == 1
    assert all(torch.equal(a["ids"], b["ids"]) for a, b in zip(alone.calls, model.calls, strict=True))


def test_too_few_pairs_are_an_error(pairs: PretrainData) -> None:
    with pytest.raises(ValueError, match="batch_size=5 is more than the 4 pairs"):
        run(pairs, dataclasses.replace(SETTINGS, batch_size=5))


def test_a_loss_that_is_no_number_stops_the_run(pairs: PretrainData) -> None:
    model = Recorder()
    model.weight.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="loss itc is nan in step 0"):
        pretrain(model, load_tokenizer(), pairs, SETTINGS, CPU, torch.Generator(), lambda report, log: None)
