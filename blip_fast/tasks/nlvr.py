"""``nlvr``: natural-language visual reasoning about two pictures, NLVR2 (paper section 5.4)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from blip_fast.data.nlvr import NLVRBatch, NLVRData
from blip_fast.models import BlipNLVR
from blip_fast.tasks.base import Metrics, Routine, Split
from blip_fast.tasks.evaluation.nlvr import accuracy
from blip_fast.tasks.evaluation.shards import padded_shard
from blip_fast.tasks.pictures import evaluation_pictures, training_pictures
from blip_fast.tasks.program import FineTuning
from blip_fast.training.settings import NLVRSettings

_FILES = {"train": "nlvr_train.json", "val": "nlvr_dev.json", "test": "nlvr_test.json"}


class NLVRTask(FineTuning[NLVRSettings, NLVRBatch]):
    """Classification of sentences; judged by accuracy.

    With ``numerics: published`` pairs change sides at random in validation and test, and samples that fill up the last
    round of ranks count twice. With ``sane`` each sample counts once, as it is written.
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

    def evaluate(self, model: nn.Module, split: Split, epoch: int | None) -> Metrics:
        data = NLVRData(
            [self.annotation(_FILES[split])],
            self.settings.image_root,
            evaluation_pictures(self.settings),
            swap=self.settings.numerics == "published",
            bad=self.bad,
            on_broken="blank",
        )
        return {"acc": accuracy(model, self.batches(data, self.settings.batch_size_test, self.own_shard(data)))}

    def own_shard(self, data: NLVRData) -> Sequence[int]:
        if self.settings.numerics == "published":
            return padded_shard(len(data), self.context.rank, self.context.world_size)
        return super().own_shard(data)
