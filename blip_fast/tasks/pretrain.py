"""``pretrain``: ITC + ITM + LM on image-caption pairs, with momentum encoders, queues and hard negatives (paper section 3)."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from torch.utils.data import Dataset

from blip_fast.checkpoints import load_bert, load_checkpoint, load_vit
from blip_fast.data.joined import JoinedData
from blip_fast.data.pictures import BrokenSampleError
from blip_fast.data.pretrain import PairSample, PretrainBatch, PretrainData
from blip_fast.data.samples import SampleData, Transform
from blip_fast.data.shards import ShardData, shard_files
from blip_fast.data.tokens import cached_tokenizer
from blip_fast.data.transforms import PRETRAIN_SCALE
from blip_fast.models import BlipPretrain
from blip_fast.tasks.base import Routine, Task
from blip_fast.tasks.evaluation.pairs import caption_ids, decode_caption
from blip_fast.tasks.pictures import evaluation_pictures, training_pictures
from blip_fast.training.schedules import alpha_ramp, pretrain_lr
from blip_fast.training.settings import PretrainSettings

_ROOM = 2
_SAMPLES = 8


class PretrainTask(Task[PretrainSettings, PretrainBatch]):
    """Pre-training. There is nothing to evaluate; every epoch becomes a checkpoint."""

    name = "pretrain"
    settings_class = PretrainSettings
    routine = Routine()
    lists: PretrainData | None = None

    def files(self) -> list[Path]:
        settings = self.settings
        shards, lists = shard_files(settings.shards), (*settings.train_file, settings.laion_path)
        if settings.shards and not any(lists):
            return shards
        return [Path(name) for name in (settings.image_root, *lists) if name] + shards

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

    def train_data(self) -> Dataset[PairSample]:
        """The pairs of the lists, then those of the shards."""
        settings, transform = self.settings, training_pictures(self.settings, PRETRAIN_SCALE)
        parts: list[SampleData[PairSample, Any]] = []
        if settings.train_file or settings.laion_path or not settings.shards:
            self.lists = self.pairs_of_lists(transform)
            parts.append(self.lists)
        if settings.shards:
            parts.append(ShardData(settings.shards, transform, bad=self.bad))
        return JoinedData(parts)

    def pairs_of_lists(self, transform: Transform) -> PretrainData:
        """The pairs of ``train_file`` and ``laion_path``."""
        settings = self.settings
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

    def samples(self, model: nn.Module) -> list[dict[str, Any]]:
        """What the decoder writes for the first pictures of the lists, which it has been trained on."""
        data, transform = self.lists, evaluation_pictures(self.settings)
        if data is None:
            return []  # shards: the page shows files
        found = []
        for number in range(min(_SAMPLES, len(data))):
            with contextlib.suppress(BrokenSampleError):
                image = transform(data.picture(number))[None].to(self.context.device)
                ids = caption_ids(cast(BlipPretrain, model), image, max_tokens=20)
                record, text = data.records[number], decode_caption(cached_tokenizer(), ids[0])
                picture = data.root.file(record.image)
                found.append({"picture": picture, "generated": text, "in the training data": record.caption})
        return found
