"""``retrieval``: image-text retrieval on COCO or Flickr30k (paper section 5.1)."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blip_fast.data.retrieval import RetrievalBatch, RetrievalEvalData, RetrievalTrainData
from blip_fast.models import BlipRetrieval
from blip_fast.tasks.base import Metrics, Routine, Split
from blip_fast.tasks.evaluation.retrieval import retrieval_scores
from blip_fast.tasks.metrics.recalls import retrieval_metrics
from blip_fast.tasks.pictures import evaluation_pictures, training_pictures
from blip_fast.tasks.program import FineTuning
from blip_fast.training.settings import RetrievalSettings

_PREFIX = {"coco": "coco_karpathy", "flickr": "flickr30k"}


class RetrievalTask(FineTuning[RetrievalSettings, RetrievalBatch]):
    """ITC and ITM; judged by recalls of the two-stage ranking."""

    name = "retrieval"
    settings_class = RetrievalSettings
    routine = Routine(
        splits=("val", "test"),
        best=("r_mean",),
        test_of_best=True,
        logs_best_epoch=True,
        evaluate_file="evaluate.txt",
    )

    def annotation_of(self, split: str) -> Path:
        """The published annotation file of a split."""
        return self.annotation(f"{_PREFIX[self.settings.dataset]}_{split}.json")

    def files(self) -> list[Path]:
        return [Path(self.settings.image_root), *map(self.annotation_of, ("train", "val", "test"))]

    def build_model(self) -> nn.Module:
        return BlipRetrieval(self.settings.blip_config(), self.settings.negative_all_rank)

    @property
    def batch_size(self) -> int:
        return self.settings.batch_size_train

    def train_data(self) -> RetrievalTrainData:
        transform = training_pictures(self.settings)
        return RetrievalTrainData([self.annotation_of("train")], self.settings.image_root, transform, bad=self.bad)

    @functools.cache  # noqa: B019  (a task lives as long as its run)
    def eval_data(self, split: Split) -> RetrievalEvalData:
        """Pictures and texts of a split."""
        return RetrievalEvalData(
            self.annotation_of(split),
            self.settings.image_root,
            evaluation_pictures(self.settings),
            bad=self.bad,
            on_broken="blank",
        )

    def losses(self, model: nn.Module, batch: RetrievalBatch, alpha: float) -> dict[str, Tensor]:
        out = model(batch.images, batch.input_ids, batch.attention_mask, batch.ids, alpha)
        return {"loss_itm": out.loss_itm, "loss_ita": out.loss_itc}

    def alpha(self, epoch: int, step: int, steps_per_epoch: int) -> float:
        """Linear from 0 in the first epoch, then constant."""
        return self.settings.alpha * (min(1.0, step / steps_per_epoch) if epoch == 0 else 1.0)

    def evaluate(self, model: nn.Module, split: Split, epoch: int | None) -> Metrics:
        data, context = self.eval_data(split), self.context
        scores_i2t, scores_t2i = retrieval_scores(
            model,
            (batch.images for batch in self.batches(data, self.settings.batch_size_test)),
            len(data),
            data.padded_texts(),
            self.settings.k_test,
            context.rank,
            context.world_size,
        )
        return retrieval_metrics(scores_i2t, scores_t2i, torch.tensor(data.image_of_text))

    def samples(self, model: nn.Module) -> list[dict[str, Any]]:
        """The text of the validation split found for each of a few pictures, beside the picture's own."""
        data, shown = self.eval_data("val"), range(min(8, len(self.eval_data("val"))))
        texts = data.padded_texts()
        images = [batch.images for batch in self.batches(data, len(shown), shown)]
        scores, _ = retrieval_scores(model, images, len(shown), texts, self.settings.k_test)
        return [
            {
                "picture": str(Path(self.settings.image_root) / data.records[image].image),
                "found": data.texts[best],
                "true": data.texts[data.texts_of_image[image][0]],
            }
            for image, best in zip(shown, scores.argmax(1).tolist(), strict=True)
        ]
