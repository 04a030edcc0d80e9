"""``caption``: captions on COCO (paper section 5.2); ``nocaps``: captions for NoCaps by the same model."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from blip_fast.data.captions import CaptionBatch, CaptionEvalData, CaptionTrainData, NoCapsData
from blip_fast.data.tokens import cached_tokenizer
from blip_fast.models import BlipCaptioner
from blip_fast.tasks.base import Metrics, Routine, Split
from blip_fast.tasks.evaluation.captions import caption_images, captions_by_image, read_references
from blip_fast.tasks.evaluation.results import save_results
from blip_fast.tasks.metrics.captions import ImageId, caption_scores
from blip_fast.tasks.pictures import evaluation_pictures, training_pictures
from blip_fast.tasks.program import FineTuning, Program
from blip_fast.training.settings import CaptionSettings, Generation, NoCapsSettings

NOCAPS_REPETITION_PENALTY = 1.1
_SAMPLES = 8


class CaptionTask(FineTuning[CaptionSettings, CaptionBatch]):
    """Language modelling behind a prompt; judged by caption metrics."""

    name = "caption"
    settings_class = CaptionSettings
    routine = Routine(
        splits=("val", "test"), best=("CIDEr", "Bleu_4"), logs_best_epoch=True, evaluate_file="evaluate.txt"
    )

    def annotation_of(self, split: str) -> Path:
        """The published annotation file of a split."""
        return self.annotation(f"coco_karpathy_{split}.json")

    def references_of(self, split: str) -> Path:
        """The file with the true captions of a split: COCO's own, or the annotations where ``coco_gt_root`` is ""."""
        root = self.settings.coco_gt_root
        return Path(root) / f"coco_karpathy_{split}_gt.json" if root else self.annotation_of(split)

    def files(self) -> list[Path]:
        annotations = [*map(self.annotation_of, ("train", "val", "test")), *map(self.references_of, ("val", "test"))]
        return [Path(self.settings.image_root), *dict.fromkeys(annotations)]

    def build_model(self) -> nn.Module:
        return BlipCaptioner(self.settings.blip_config())

    @property
    def batch_size(self) -> int:
        return self.settings.batch_size

    def train_data(self) -> CaptionTrainData:
        settings = self.settings
        transform = training_pictures(settings)
        files = [self.annotation_of("train")]
        return CaptionTrainData(files, settings.image_root, transform, prompt=settings.prompt, bad=self.bad)

    @functools.cached_property
    def prompt_length(self) -> int:
        """Tokens at the start of every text that are not learned: [CLS] and the prompt."""
        return len(cached_tokenizer()(self.settings.prompt).input_ids) - 1

    def losses(self, model: nn.Module, batch: CaptionBatch, alpha: float) -> dict[str, Tensor]:
        return {"loss": model(batch.images, batch.texts, prompt_length=self.prompt_length).loss}

    @functools.cache  # noqa: B019  (a task lives as long as its run)
    def eval_data(self, split: Split) -> CaptionEvalData:
        """Pictures of a split."""
        transform = evaluation_pictures(self.settings)
        return CaptionEvalData(
            self.annotation_of(split), self.settings.image_root, transform, bad=self.bad, on_broken="blank"
        )

    @functools.cache  # noqa: B019
    def references(self, split: Split) -> dict[ImageId, list[str]]:
        """True captions of a split by image id, of the images that are captioned."""
        own: dict[ImageId, list[str]] = {}
        for record in self.eval_data(split).records:
            own.setdefault(record.image_id, []).extend(record.captions)
        if not self.settings.coco_gt_root:
            return own
        references = read_references(self.references_of(split))
        return {image: references[image] for image in own if image in references}

    def evaluate(self, model: nn.Module, split: Split, epoch: int | None) -> Metrics:
        batches = self.batches(self.eval_data(split), self.settings.batch_size)
        entries = caption_images(model, batches, **generation_options(self.settings))
        name = f"{split}_epoch{epoch or 0}"  # published: --evaluate is epoch 0
        merged = save_results(entries, self.context.result_dir, name, key="image_id")
        if not self.context.is_main:
            return {}
        scores = caption_scores(captions_by_image(merged), self.references(split), self.settings.java_metrics)
        self.say_once(scores.notes)
        return scores.metrics

    def samples(self, model: nn.Module) -> list[dict[str, Any]]:
        """Generated and true captions of a few pictures of the validation split."""
        data = self.eval_data("val")
        shown = range(min(_SAMPLES, len(data)))
        entries = caption_images(model, self.batches(data, _SAMPLES, shown), **generation_options(self.settings))
        return [
            {
                "picture": str(Path(self.settings.image_root) / data.records[number].image),
                "generated": entry["caption"],
                "true": self.references("val")[entry["image_id"]][0],
            }
            for number, entry in zip(shown, entries, strict=True)
        ]


class NoCapsTask(Program[NoCapsSettings, Any]):
    """Captions of NoCaps' pictures in its server's format."""

    name = "nocaps"
    settings_class = NoCapsSettings
    routine = Routine(trains=False, splits=("val", "test"))

    def files(self) -> list[Path]:
        return [Path(self.settings.image_root), *(self.annotation(f"nocaps_{split}.json") for split in ("val", "test"))]

    def build_model(self) -> nn.Module:
        return BlipCaptioner(self.settings.blip_config())

    def evaluate(self, model: nn.Module, split: Split, epoch: int | None) -> Metrics:
        settings = self.settings
        transform = evaluation_pictures(settings)
        file = self.annotation(f"nocaps_{split}.json")
        data = NoCapsData(file, settings.image_root, transform, bad=self.bad, on_broken="blank")
        options = generation_options(settings) | {"repetition_penalty": NOCAPS_REPETITION_PENALTY}
        entries = caption_images(model, self.batches(data, settings.batch_size), **options)
        save_results(entries, self.context.result_dir, split, key="image_id")
        return {}


def generation_options(settings: Generation) -> dict[str, Any]:
    """Arguments of ``BlipCaptioner.generate``."""
    return {name: getattr(settings, name) for name in ("prompt", "num_beams", "max_length", "min_length")}
