"""``vqa``: visual question answering on VQA v2 and Visual Genome (paper section 5.3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from blip_fast.data.annotations import read_strings
from blip_fast.data.vqa import VQATestData, VQATrainBatch, VQATrainData
from blip_fast.models import BlipVQA
from blip_fast.tasks.base import Metrics, Routine, Split
from blip_fast.tasks.evaluation.results import Entry, save_results
from blip_fast.tasks.evaluation.vqa import generate_answers, rank_answers
from blip_fast.tasks.pictures import evaluation_pictures, training_pictures
from blip_fast.tasks.program import FineTuning
from blip_fast.training.settings import VQASettings

_SAMPLES = 8


class VQATask(FineTuning[VQASettings, VQATrainBatch]):
    """Language modelling of answers; its result file goes to the VQA server, which has the true answers."""

    name = "vqa"
    settings_class = VQASettings
    routine = Routine(final_splits=("test",))

    def files(self) -> list[Path]:
        names = [
            *self.settings.train_files,
            "vqa_test",
            *(["answer_list"] if self.settings.inference == "rank" else []),
        ]
        roots = [self.settings.vqa_root, *([self.settings.vg_root] if self.settings.vg_root else [])]
        return [*map(Path, roots), *(self.annotation(f"{name}.json") for name in names)]

    def build_model(self) -> nn.Module:
        return BlipVQA(self.settings.blip_config())

    @property
    def batch_size(self) -> int:
        return self.settings.batch_size_train

    def train_data(self) -> VQATrainData:
        settings = self.settings
        files = [self.annotation(f"{name}.json") for name in settings.train_files]
        transform = training_pictures(settings)
        return VQATrainData(files, settings.vqa_root, settings.vg_root or None, transform, bad=self.bad)

    def losses(self, model: nn.Module, batch: VQATrainBatch, alpha: float) -> dict[str, Tensor]:
        counts = batch.answers_per_question
        return {"loss": model(batch.images, batch.questions, None, batch.answers, None, counts, batch.weights).loss}

    def evaluate(self, model: nn.Module, split: Split, epoch: int | None) -> Metrics:
        data = self.test_data()
        entries = self.answers(model, data, self.own_shard(data))
        save_results(entries, self.context.result_dir, "vqa_result", key="question_id")
        return {}

    def test_data(self) -> VQATestData:
        """Questions of the test split."""
        settings = self.settings
        return VQATestData(
            self.annotation("vqa_test.json"),
            settings.vqa_root,
            settings.vg_root or None,
            evaluation_pictures(settings),
            bad=self.bad,
            on_broken="blank",
        )

    def answers(self, model: nn.Module, data: VQATestData, indices: Any) -> list[Entry]:
        """Entries of the result file for the chosen questions, generated or ranked as ``inference`` says."""
        batches = self.batches(data, self.settings.batch_size_test, indices)
        if self.settings.inference == "generate":
            return generate_answers(model, batches)
        candidates = read_strings(self.annotation("answer_list.json"))
        return rank_answers(model, batches, candidates, self.settings.k_test)

    def samples(self, model: nn.Module) -> list[dict[str, Any]]:
        """Answers to a few questions of the test split."""
        data = self.test_data()
        records = data.records[: min(_SAMPLES, len(data))]
        return [
            {
                "picture": str(data.roots[record.source].path / record.image),
                "question": record.question,
                "answer": entry["answer"],
            }
            for record, entry in zip(records, self.answers(model, data, range(len(records))), strict=True)
        ]
