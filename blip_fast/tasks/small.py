"""Small models on small sets: pre-training, fine-tuning and evaluation in minutes on a CPU."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from blip_fast.checkpoints import load_state
from blip_fast.config import BlipConfig
from blip_fast.data.captions import CaptionTrainData
from blip_fast.data.packing import pad_lists
from blip_fast.data.pretrain import PretrainData
from blip_fast.data.retrieval import RetrievalTrainData
from blip_fast.data.transforms import train_transform
from blip_fast.models import BlipCaptioner, BlipPretrain, BlipRetrieval
from blip_fast.tasks.base import RunContext
from blip_fast.tasks.captions import CaptionTask
from blip_fast.tasks.demo import train_demo
from blip_fast.tasks.evaluation.pairs import caption_ids, decode_caption
from blip_fast.tasks.evaluation.retrieval import retrieval_scores
from blip_fast.tasks.metrics.exact import score_captions
from blip_fast.tasks.metrics.recalls import retrieval_metrics
from blip_fast.tasks.pretrain import PretrainTask
from blip_fast.tasks.retrieval import RetrievalTask
from blip_fast.training.settings import CaptionSettings, PretrainSettings, RetrievalSettings

_EPOCHS = 12  # the schedules count in epochs
_LAST_LR_SHARE = 0.1
_K_TEST = 32


@dataclasses.dataclass(frozen=True)
class SmallSizes:
    """Sizes of model and batches, smallest share of a picture in a training crop; the learning rates suit them.

    So short a training underfits: no dropout, and large patches and small batches, which make many cheap steps.
    """

    image_size: int = 60
    patch: int = 12
    max_tokens: int = 24
    batch_size: int = 32
    queue_size: int = 256
    crop_share: float = 0.8
    lr: float = 1.5e-3
    finetune_lr: float = 5e-4

    def config(self, vocab_size: int) -> BlipConfig:
        """The model."""
        return BlipConfig.tiny(
            vocab_size=vocab_size,
            image_size=self.image_size,
            vit_patch=self.patch,
            max_position_embeddings=self.max_tokens,
            queue_size=self.queue_size,
            momentum=0.98,
            hidden_dropout=0.0,
            attention_dropout=0.0,
        )

    def schedule(self, steps: int, pairs: int) -> dict[str, Any]:
        """Settings of a run of so many steps: its passes over the pairs are divided into about twelve epochs."""
        passes = max(round(steps * self.batch_size / (pairs * _EPOCHS)), 1)
        return {"max_steps": steps, "passes_per_epoch": passes, "image_size": self.image_size, "workers": 0}

    def epochs(self, steps: int, pairs: int) -> float:
        """Epochs of such a run."""
        passes = self.schedule(steps, pairs)["passes_per_epoch"]
        return steps / max(pairs * passes // self.batch_size, 1)

    def transform(self) -> Any:
        """Gentle augmentation: captions tell colours, and left from right."""
        return train_transform(self.image_size, (self.crop_share, 1.0), flip=False, augment=False)


class SmallPretraining(PretrainTask):
    """Pre-training on data that is there."""

    data: PretrainData

    def train_data(self) -> PretrainData:
        return self.data


class SmallCaptioning(CaptionTask):
    """Fine-tuning of a captioner on data that is there."""

    data: CaptionTrainData

    def train_data(self) -> CaptionTrainData:
        return self.data

    @property
    def prompt_length(self) -> int:
        return self.data.prompt_length


class SmallRetrieval(RetrievalTask):
    """Fine-tuning of a filter on data that is there."""

    data: RetrievalTrainData

    def train_data(self) -> RetrievalTrainData:
        return self.data


def pretrain_task(
    files: list[Path], tokenizer: PreTrainedTokenizerFast, sizes: SmallSizes, steps: int, context: RunContext
) -> SmallPretraining:
    """Pre-training on lists of {image: full path, caption}: warm-up in the first epoch, then step decay to a tenth."""
    data = PretrainData(
        files, "/", sizes.transform(), tokenizer=tokenizer, max_tokens=sizes.max_tokens, keep_decoded=True
    )
    settings = PretrainSettings(
        **sizes.schedule(steps, len(data)),
        batch_size=sizes.batch_size,
        init_lr=sizes.lr,
        warmup_steps=max(steps // _EPOCHS, 1),
        lr_decay_rate=_LAST_LR_SHARE ** (1 / max(sizes.epochs(steps, len(data)), 1)),
    )
    task = SmallPretraining(settings, context)
    task.data = data
    return task


def finetune_captioner(
    pretrained: BlipPretrain,
    file: Path,
    tokenizer: PreTrainedTokenizerFast,
    sizes: SmallSizes,
    steps: int,
    context: RunContext,
) -> BlipCaptioner:
    """A captioner from a pre-trained model: language modelling behind the prompt."""
    data = CaptionTrainData(
        [file], "/", sizes.transform(), tokenizer=tokenizer, max_tokens=sizes.max_tokens, keep_decoded=True
    )
    epochs = max(round(sizes.epochs(steps, len(data))), 1)
    settings = CaptionSettings(
        **sizes.schedule(steps, len(data)),
        batch_size=sizes.batch_size,
        init_lr=sizes.finetune_lr,
        max_epoch=epochs + 1,
    )
    task, model = SmallCaptioning(settings, context), BlipCaptioner(pretrained.config)
    task.data = data
    load_state(model, pretrained.state_dict())
    train_demo(task, model, lambda *report: None)
    return model.eval()


def finetune_filter(
    pretrained: BlipPretrain,
    file: Path,
    tokenizer: PreTrainedTokenizerFast,
    sizes: SmallSizes,
    steps: int,
    context: RunContext,
) -> BlipRetrieval:
    """A filter from a pre-trained model: ITC and ITM."""
    entries = RetrievalTrainData(
        [file], "/", sizes.transform(), tokenizer=tokenizer, max_tokens=sizes.max_tokens, keep_decoded=True
    )
    epochs = max(round(sizes.epochs(steps, len(entries))), 1)
    settings = RetrievalSettings(
        **sizes.schedule(steps, len(entries)),
        batch_size_train=sizes.batch_size,
        init_lr=sizes.finetune_lr,
        max_epoch=epochs + 1,
        vit_grad_ckpt=False,
    )
    task, model = SmallRetrieval(settings, context), retrieval_model(pretrained)
    task.data = entries
    train_demo(task, model, lambda *report: None)
    return model.eval()


def retrieval_model(pretrained: BlipPretrain) -> BlipRetrieval:
    """The retrieval model that a pre-trained one holds."""
    model = BlipRetrieval(pretrained.config)
    load_state(model, pretrained.state_dict())
    return model.eval()


def evaluate_held_out(
    model: BlipPretrain, tokenizer: PreTrainedTokenizerFast, pairs: PretrainData, sizes: SmallSizes
) -> dict[str, float]:
    """Recall at 1 and 5 of both directions, CIDEr and exact captions of a pre-trained model, in per cent."""
    samples = [pairs[index] for index in range(len(pairs))]
    images = torch.stack([sample.image for sample in samples])
    texts = pad_lists([sample.tokens for sample in samples], pairs.encoder.width)
    scores_i2t, scores_t2i = retrieval_scores(
        retrieval_model(model), images.split(64), len(images), texts, min(_K_TEST, len(images))
    )
    recalls = retrieval_metrics(scores_i2t, scores_t2i, torch.arange(len(images)))
    ids = [row for part in images.split(64) for row in caption_ids(model, part, sizes.max_tokens)]
    written = [decode_caption(tokenizer, row) for row in ids]
    names = ("txt_r1", "txt_r5", "img_r1", "img_r5")
    return {name: recalls[name] for name in names} | score_captions(written, pairs.captions)
