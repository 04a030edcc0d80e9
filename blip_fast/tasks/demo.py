"""The demo: a small BLIP pre-trained on 182 bundled drawings, then tried on 26 that it has not seen."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from blip_fast.config import BlipConfig
from blip_fast.data.demo_pairs import demo_pairs
from blip_fast.data.pretrain import PretrainData
from blip_fast.data.tokenizer import load_tokenizer, restrict_vocabulary
from blip_fast.data.transforms import eval_transform
from blip_fast.models import BlipPretrain
from blip_fast.tasks.base import RunContext, Task
from blip_fast.tasks.evaluation.pairs import (
    caption_ids,
    decode_caption,
    encode_pairs,
    matching_logits,
    recalls,
    retrieval_scores,
)
from blip_fast.tasks.pictures import training_pictures
from blip_fast.tasks.pretrain import PretrainTask
from blip_fast.training.loop import epoch_batches, train_steps
from blip_fast.training.losses import LossReader
from blip_fast.training.meters import MetricLog
from blip_fast.training.seeding import deterministic_algorithms, seed_everything
from blip_fast.training.settings import PretrainSettings
from blip_fast.training.trainer import StepReport, Trainer

DEFAULT_STEPS = 540
BATCH_SIZE = 26
_EPOCHS = 12
_LAST_LR_SHARE = 0.1
_TRAIN_PAIRS = 182
_MAX_TOKENS = 12
_MODEL: dict[str, Any] = {"vit_patch": 8, "max_position_embeddings": 32, "momentum": 0.98}
# Names of the losses in metrics.json.
_LOG_NAMES = {"loss_ita": "itc", "loss_itm": "itm", "loss_lm": "lm"}
# More threads than this make operations of this size slower.
_MAX_THREADS = 4
# Is told of every finished step: its report, the steps of an epoch, and the values of all steps so far.
Show = Callable[[StepReport, int, MetricLog], None]


@dataclasses.dataclass(frozen=True)
class DemoResult:
    """A finished demo. Scores are (26 images, 26 texts): cosine of features, ITM probability of a match, re-ranked."""

    model: BlipPretrain
    tokenizer: PreTrainedTokenizerFast
    settings: PretrainSettings
    seed: int
    train_pairs: PretrainData
    test_pairs: PretrainData
    log: MetricLog
    cosine: torch.Tensor
    matching: torch.Tensor
    reranked: torch.Tensor
    captions: list[str]
    exact: list[bool]
    seconds: dict[str, float]

    def metrics(self) -> dict[str, Any]:
        """Everything measured, as plain numbers and strings; only ``seconds`` differs between runs with one seed."""
        count = len(self.test_pairs)
        true = self.matching.diagonal()
        false = self.matching[~torch.eye(count, dtype=torch.bool)]
        return {
            "seed": self.seed,
            "settings": self.settings.model_dump(exclude_defaults=True),
            "model": self.model.config.to_dict(),
            "pairs": {"train": len(self.train_pairs), "held_out": count},
            "retrieval": {
                "chance": {"r1": 1 / count, "r5": 5 / count},
                "contrastive": recalls(self.cosine),
                "reranked": recalls(self.reranked),
            },
            "matching": {
                "true_pairs_accepted": float((true > 0.5).double().mean()),
                "false_pairs_rejected": float((false <= 0.5).double().mean()),
                "true_pairs_mean": float(true.double().mean()),
                "false_pairs_mean": float(false.double().mean()),
            },
            "captions": {
                "exact": sum(self.exact) / count,
                "held_out": [
                    {"image_id": record.image_id, "truth": truth, "generated": caption, "exact": exact}
                    for record, truth, caption, exact in zip(
                        self.test_pairs.records, self.test_pairs.captions, self.captions, self.exact, strict=True
                    )
                ],
            },
            "log": {_LOG_NAMES.get(name, name): self.log.series(name) for name in self.log.names},
            "seconds": self.seconds,
        }


class DemoTask(PretrainTask):
    """Pre-training of a small model on the bundled drawings."""

    def __init__(self, settings: PretrainSettings, context: RunContext) -> None:
        super().__init__(settings, context)
        # Some 400 entries instead of 30,524: a step takes half the time, and no caption changes.
        self.tokenizer = restrict_vocabulary(load_tokenizer(), self.pairs("train").captions)

    def pairs(self, split: str) -> PretrainData:
        """The pairs of a split."""
        train = split == "train"
        transform = training_pictures(self.settings) if train else eval_transform(self.settings.image_size)
        return demo_pairs(split, transform, tokenizer=getattr(self, "tokenizer", None), max_tokens=_MAX_TOKENS)

    def build_model(self) -> BlipPretrain:
        fields = self.settings.model | {"vocab_size": len(self.tokenizer), "queue_size": self.settings.queue_size}
        return BlipPretrain(BlipConfig.tiny(image_size=self.settings.image_size, **fields))

    def train_data(self) -> PretrainData:
        return self.pairs("train")


def demo_settings(steps: int, pairs: int = _TRAIN_PAIRS) -> PretrainSettings:
    """The recipe with its schedule stretched over ``steps``: warm-up in the first of twelve epochs, then step decay."""
    passes = max(round(steps * BATCH_SIZE / (pairs * _EPOCHS)), 1)
    return PretrainSettings(
        max_steps=steps,
        batch_size=BATCH_SIZE,
        image_size=64,
        queue_size=52,
        init_lr=2e-3,
        warmup_steps=pairs * passes // BATCH_SIZE,
        lr_decay_rate=_LAST_LR_SHARE ** (1 / _EPOCHS),
        passes_per_epoch=passes,
        flip=False,  # captions tell left from right, and colours
        rand_augment=False,
        workers=0,
        max_bad_samples=0,
        model=_MODEL,
    )


def train_demo(task: Task[Any, Any], model: torch.nn.Module, show: Show) -> MetricLog:
    """Train ``model``; returns the losses of all steps."""
    trainer = Trainer(model, task.losses, task.settings, task.to_device)
    data, reader, log = task.train_data(), LossReader(), MetricLog()
    for epoch in itertools.count():
        batches, steps = epoch_batches(task, data, epoch)
        for report in train_steps(task, trainer, batches, epoch, steps):
            reader.put(report)
            last = epoch * steps + report.step == task.settings.max_steps - 1
            for finished, values in reader.take(wait=last):
                log.append({**values, "lr": finished.lr, "alpha": finished.alpha})
                show(finished, steps, log)
            if last:
                return log
    raise AssertionError("unreachable")


def run_demo(steps: int, seed: int, device: torch.device, show: Show) -> DemoResult:
    """Pre-train and evaluate; the same arguments on the same machine give the same numbers to the bit."""
    with deterministic_algorithms(), few_threads():
        seed_everything(seed)
        settings = demo_settings(steps)
        task = DemoTask(settings, RunContext(device, seed=seed))
        train_pairs, test_pairs, tokenizer = task.train_data(), task.pairs("test"), task.tokenizer
        model = task.build_model().to(device)
        started = time.perf_counter()
        log = train_demo(task, model, show)
        trained = time.perf_counter()
        model.eval()
        encoded = encode_pairs(model, test_pairs, device)
        logits = matching_logits(model, encoded, model.config.enc_token_id)
        ids = caption_ids(model, encoded.images, _MAX_TOKENS)
        return DemoResult(
            model=model,
            tokenizer=tokenizer,
            settings=settings,
            seed=seed,
            train_pairs=train_pairs,
            test_pairs=test_pairs,
            log=log,
            cosine=(encoded.image_features @ encoded.text_features.T).cpu(),
            matching=logits.softmax(dim=-1)[..., 1].cpu(),
            reranked=retrieval_scores(encoded, logits).cpu(),
            captions=[decode_caption(tokenizer, row) for row in ids],
            exact=same_texts(tokenizer, ids, encoded.input_ids),
            seconds={"training": trained - started, "evaluation": time.perf_counter() - trained},
        )


def same_texts(tokenizer: PreTrainedTokenizerFast, ids: torch.Tensor, others: torch.Tensor) -> list[bool]:
    """Whether each row of ids (N, n) and of others (N, m) is the same text; special tokens do not count."""
    special = set(tokenizer.all_special_ids)

    def words(row: torch.Tensor) -> list[int]:
        return [token for token in row.tolist() if token not in special]

    return [words(row) == words(other) for row, other in zip(ids, others, strict=True)]


@contextlib.contextmanager
def few_threads() -> Iterator[None]:
    """Within the block torch uses at most four threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, _MAX_THREADS))
    try:
        yield
    finally:
        torch.set_num_threads(before)
