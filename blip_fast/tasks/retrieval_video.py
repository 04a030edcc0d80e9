"""``retrieval_video``: zero-shot retrieval of MSRVTT's videos by a model for images (paper section 5.6)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from blip_fast.data.video_retrieval import VideoRetrievalData
from blip_fast.models import BlipVideoRetrieval
from blip_fast.tasks.base import Metrics, Routine, Split
from blip_fast.tasks.evaluation.retrieval import retrieval_scores
from blip_fast.tasks.metrics.recalls import retrieval_metrics
from blip_fast.tasks.program import Program
from blip_fast.training.settings import VideoRetrievalSettings


class VideoRetrievalTask(Program[VideoRetrievalSettings, Any]):
    """Two-stage ranking of videos and texts; its numbers are appended to ``test_result.txt``."""

    name = "retrieval_video"
    settings_class = VideoRetrievalSettings
    routine = Routine(trains=False, splits=("test",))

    def files(self) -> list[Path]:
        return [Path(self.settings.video_root), self.annotation("msrvtt_test.jsonl")]

    def build_model(self) -> nn.Module:
        return BlipVideoRetrieval(self.settings.blip_config())

    def evaluate(self, model: nn.Module, split: Split, epoch: int | None) -> Metrics:
        settings, context = self.settings, self.context
        data = VideoRetrievalData(
            self.annotation("msrvtt_test.jsonl"),
            settings.video_root,
            settings.image_size,
            frames=settings.num_frm_test,
            published=settings.numerics == "published",
            bad=self.bad,
            on_broken="blank",
        )
        scores_v2t, scores_t2v = retrieval_scores(
            model,
            (batch.videos for batch in self.batches(data, settings.batch_size)),
            len(data),
            data.padded_texts(),
            settings.k_test,
            context.rank,
            context.world_size,
            encode=model.encode_videos,
        )
        metrics = retrieval_metrics(scores_v2t, scores_t2v, torch.arange(len(data)), item="vid")
        if context.is_main:
            with (context.output_dir / "test_result.txt").open("a", encoding="utf-8") as file:
                file.write(json.dumps(metrics) + "\n")
        return metrics
