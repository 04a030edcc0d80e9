"""``nlvr``: natural-language visual reasoning about two pictures, NLVR2 (paper section 5.4)."""

from __future__ import annotations

import functools
from pathlib import Path

from torch import Tensor, nn

from blip_fast.data.nlvr import NLVRBatch, NLVRData
from blip_fast.models import BlipNLVR
from blip_fast.tasks.base import Metrics, Routine, Split
from blip_fast.tasks.evaluation.nlvr import accuracy
from blip_fast.tasks.pictures import evaluation_pictures, training_pictures
from blip_fast.tasks.program import FineTuning
from blip_fast.training.settings import NLVRSettings

_FILES = {"train": "nlvr_train.json", "val": "nlvr_dev.json", "test": "nlvr_test.json"}


class NLVRTask(FineTuning[NLVRSettings, NLVRBatch]):
    """Classification of sentences; judged by accuracy.

    With ``numerics: published`` pairs change sides at random in validation and test too, with ``sane`` they stay as written.
    Each sample counts once; in the published program those that fill up the last round of ranks count twice.
    """

    name = "nlvr"
    settings_class = NLVRSettings
    routine = Routine(
        splits=("val", "test"),
        best=("acc",),
        ends_with_best_epoch=True,
        train_format="{:.4f}",
        metric_format="{:.4f}",
        evaluate_file="log.txt",
    )

    def files(self) -> list[Path]:
        return [Path(self.settings.image_root), *map(self.annotation, _FILES.values())]

    def build_model(self) -> nn.Module:
        return BlipNLVR(self.settings.blip_config())

    @property
    def batch_size(self) -> int:
        return self.settings.batch_size_train

    def train_data(self) -> NLVRData:
        transform = training_pictures(self.settings)
        return NLVRData([self.annotation(_FILES["train"])], self.settings.image_root, transform, bad=self.bad)

    def losses(self, model: nn.Module, batch: NLVRBatch, alpha: float) -> dict[str, Tensor]:
        return {"loss": model(batch.image_pairs, batch.texts, None, batch.labels).loss}

    @functools.cache  # noqa: B019  (a task lives as long as its run)
    def eval_data(self, split: Split) -> NLVRData:
        """Sentences of a split."""
        return NLVRData(
            [self.annotation(_FILES[split])],
            self.settings.image_root,
            evaluation_pictures(self.settings),
            swap=self.settings.numerics == "published",
            bad=self.bad,
            on_broken="blank",
        )

    def evaluate(self, model: nn.Module, split: Split, epoch: int | None) -> Metrics:
        return {"acc": accuracy(model, self.batches(self.eval_data(split), self.settings.batch_size_test))}
