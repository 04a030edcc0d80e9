"""``pretrain``: ITC + ITM + LM on image-caption pairs, with momentum encoders, queues and hard negatives (paper section 3)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from torch import Tensor, nn

from blip_fast.checkpoints import load_bert, load_checkpoint, load_vit
from blip_fast.data.pretrain import PretrainBatch, PretrainData
from blip_fast.data.shards import ShardData, shard_files
from blip_fast.data.transforms import PRETRAIN_SCALE
from blip_fast.models import BlipPretrain
from blip_fast.tasks.base import Metrics, Routine, Split, Task
from blip_fast.tasks.pictures import training_pictures
from blip_fast.training.schedules import alpha_ramp, pretrain_lr
from blip_fast.training.settings import PretrainSettings

_ROOM = 2


class PretrainTask(Task[PretrainSettings, PretrainBatch]):
    """Pre-training. There is nothing to evaluate; every epoch becomes a checkpoint."""

    name = "pretrain"
    settings_class = PretrainSettings
    routine = Routine()

    def files(self) -> list[Path]:
        settings = self.settings
        if settings.shards:
            return shard_files(settings.shards)
        return [Path(name) for name in (settings.image_root, *settings.train_file, settings.laion_path) if name]

    def build_model(self) -> nn.Module:
        return BlipPretrain(self.settings.blip_config())

    def load_initial(self, model: nn.Module) -> None:
        """A checkpoint if ``pretrained`` names one; else a ViT trained on ImageNet, and BERT."""
        settings = self.settings
        if settings.pretrained:
            load_checkpoint(model, settings.pretrained)
            return
        if settings.vit_source:
            load_vit(model, settings.vit_source)
        if settings.init_bert:
            load_bert(model, settings.init_bert)

    def train_data(self) -> PretrainData | ShardData:
        settings = self.settings
        transform = training_pictures(settings, PRETRAIN_SCALE)
        if settings.shards:
            if settings.train_file or settings.laion_path:
                raise ValueError("shards are given beside train_file or laion_path; expected one kind of data")
            return ShardData(settings.shards, transform, bad=self.bad)
        rotating = sorted(Path(settings.laion_path).glob("*.json")) if settings.laion_path else []
        if settings.laion_path and not rotating:
            raise ValueError(f"laion_path={settings.laion_path!r} has no .json files")
        return PretrainData(settings.train_file, settings.image_root, transform, rotating=rotating, bad=self.bad)

    @property
    def batch_size(self) -> int:
        return self.settings.batch_size

    def fixed_shape(self, batch: PretrainBatch) -> PretrainBatch:
        """Room for whole numbers of ``_ROOM`` tokens a text on average, and for the longest text a multiple of 16."""
        texts = batch.texts
        room, longest = _ROOM * len(texts), -(-texts.max_length // 16) * 16
        rows = -(-texts.input_ids.shape[0] // room) * room
        return dataclasses.replace(batch, texts=texts.with_capacity(rows, longest), captions=(), broken=())

    def losses(self, model: nn.Module, batch: PretrainBatch, alpha: float) -> dict[str, Tensor]:
        output = model(batch.images, batch.texts, alpha=alpha)
        return {"loss_ita": output.loss_itc, "loss_itm": output.loss_itm, "loss_lm": output.loss_lm}

    def learning_rate(self, epoch: int, step: int, steps_per_epoch: int) -> float:
        settings = self.settings
        return pretrain_lr(
            epoch,
            step,
            init_lr=settings.init_lr,
            min_lr=settings.min_lr,
            warmup_lr=settings.warmup_lr,
            decay_rate=settings.lr_decay_rate,
            warmup_steps=settings.warmup_steps,
        )

    def alpha(self, epoch: int, step: int, steps_per_epoch: int) -> float:
        return alpha_ramp(epoch, step, steps_per_epoch, self.settings.alpha)

    def evaluate(self, model: nn.Module, split: Split, epoch: int | None) -> Metrics:
        return {}
