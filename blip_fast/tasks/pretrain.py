"""Pre-training on image-caption pairs: ITC + ITM + LM, with momentum encoders, queues and hard negatives."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedTokenizerFast

from blip_fast.data.bad_samples import BadSamples
from blip_fast.data.pretrain import PretrainBatch, PretrainData
from blip_fast.training.loop import StepReport, adamw, train
from blip_fast.training.meters import MetricLog
from blip_fast.training.schedules import alpha_ramp, pretrain_lr
from blip_fast.training.seeding import seed_worker

# Reading losses waits for the device, so NaNs are looked for only once in so many steps.
_CHECK_EVERY = 50


@dataclasses.dataclass(frozen=True)
class PretrainSettings:
    """How to pre-train. The defaults are the published ones, apart from ``total_steps``.

    An epoch is ``passes_per_epoch`` passes over the pairs, each in a new order: the schedules count in epochs, and
    small sets need longer ones.
    """

    total_steps: int
    batch_size: int = 75
    init_lr: float = 3e-4
    min_lr: float = 1e-6
    warmup_lr: float = 1e-6
    warmup_steps: int = 3000
    lr_decay_rate: float = 0.9
    weight_decay: float = 0.05
    alpha: float = 0.4
    max_tokens: int = 30
    passes_per_epoch: int = 1
    workers: int = 4
    max_bad_samples: int = 100

    def to_dict(self) -> dict[str, int | float]:
        return dataclasses.asdict(self)


class PassSampler(Sampler[int]):
    """Indices of ``passes`` passes over ``length`` samples, each pass a new permutation drawn from ``generator``."""

    def __init__(self, length: int, passes: int, generator: torch.Generator) -> None:
        self.length = length
        self.passes = passes
        self.generator = generator

    def __len__(self) -> int:
        return self.length * self.passes

    def __iter__(self) -> Iterator[int]:
        for _ in range(self.passes):
            yield from torch.randperm(self.length, generator=self.generator).tolist()


def pretrain(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    pairs: PretrainData,
    settings: PretrainSettings,
    device: torch.device,
    generator: torch.Generator,
    on_step: Callable[[StepReport, MetricLog], None],
) -> tuple[MetricLog, BadSamples]:
    """Train ``model``, a ``BlipPretrain`` on ``device``, in place; returns every step's losses and the broken pictures.

    Each batch: ``model(image, input_ids, attention_mask, alpha=...)`` with captions padded or cut to
    ``settings.max_tokens``. ``generator`` orders the pairs.
    """
    if len(pairs) < settings.batch_size:
        raise ValueError(f"batch_size={settings.batch_size} is more than the {len(pairs)} pairs there are")
    loader = DataLoader(
        pairs,
        batch_size=settings.batch_size,
        sampler=PassSampler(len(pairs), settings.passes_per_epoch, generator),
        num_workers=settings.workers,
        collate_fn=PretrainData.collate,
        drop_last=True,
        pin_memory=device.type == "cuda",
        worker_init_fn=seed_worker,
        generator=generator,
    )
    log, broken = MetricLog(), BadSamples(settings.max_bad_samples)

    def losses(batch: PretrainBatch, alpha: float) -> dict[str, Tensor]:
        broken.add(batch.broken)
        texts = tokenize(tokenizer, list(batch.captions), settings.max_tokens)
        images, ids = (tensor.to(device, non_blocking=True) for tensor in (batch.images, texts["input_ids"]))
        # the mask stays on the host, where the lengths are read
        output = model(images, ids, texts["attention_mask"], alpha=alpha)
        return {"itc": output.loss_itc, "itm": output.loss_itm, "lm": output.loss_lm}

    def record(report: StepReport) -> None:
        log.append({**report.losses, "lr": report.lr, "alpha": report.alpha})
        if report.step % _CHECK_EVERY == 0 or report.step == settings.total_steps - 1:
            check_finite(log, list(report.losses), report.step - _CHECK_EVERY)
        on_step(report, log)

    model.train()
    train(
        losses,
        loader,
        adamw(model, settings.init_lr, settings.weight_decay),
        total_steps=settings.total_steps,
        lr_at=lambda epoch, step: pretrain_lr(
            epoch,
            step,
            init_lr=settings.init_lr,
            min_lr=settings.min_lr,
            warmup_lr=settings.warmup_lr,
            decay_rate=settings.lr_decay_rate,
            warmup_steps=settings.warmup_steps,
        ),
        alpha_at=lambda epoch, step: alpha_ramp(epoch, step, len(loader), settings.alpha),
        on_step=record,
    )
    return log, broken


def check_finite(log: MetricLog, names: list[str], first_step: int) -> None:
    """Raise FloatingPointError that names a step from ``first_step`` on with a NaN or infinite loss, if there is one."""
    for name in names:
        series = log.series(name)
        for step in range(max(first_step, 0), len(series)):
            if not math.isfinite(value := series[step]):
                raise FloatingPointError(f"loss {name} is {value} in step {step}; a lower init_lr may help")


def tokenize(tokenizer: PreTrainedTokenizerFast, captions: list[str], max_tokens: int) -> dict[str, Tensor]:
    """input_ids and attention_mask (B, max_tokens) int64 of captions, padded or cut to ``max_tokens``."""
    texts = tokenizer(captions, padding="max_length", truncation=True, max_length=max_tokens, return_tensors="pt")
    return {"input_ids": texts["input_ids"], "attention_mask": texts["attention_mask"]}
