"""The programs by their names, with the files and folders that the published ones use unless told otherwise."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from blip_fast.tasks.base import Task


@dataclass(frozen=True)
class Program:
    """Where a program's task is ("module:class" below blip_fast.tasks), its YAML file and its output folder."""

    task: str
    config: str
    output_dir: str

    def task_class(self) -> type[Task[Any, Any]]:
        """The class; imports what the program needs and no other does."""
        module, _, name = self.task.partition(":")
        task_class: type[Task[Any, Any]] = getattr(importlib.import_module(f"blip_fast.tasks.{module}"), name)
        return task_class


PROGRAMS = {
    "pretrain": Program("pretrain:PretrainTask", "pretrain.yaml", "output/Pretrain"),
    "retrieval": Program("retrieval:RetrievalTask", "retrieval_flickr.yaml", "output/Retrieval_flickr"),
    "caption": Program("captions:CaptionTask", "caption_coco.yaml", "output/Caption_coco"),
    "vqa": Program("vqa:VQATask", "vqa.yaml", "output/VQA"),
    "nlvr": Program("nlvr:NLVRTask", "nlvr.yaml", "output/NLVR"),
    "nocaps": Program("captions:NoCapsTask", "nocaps.yaml", "output/NoCaps"),
    "retrieval_video": Program(
        "retrieval_video:VideoRetrievalTask", "retrieval_msrvtt.yaml", "output/Retrieval_msrvtt"
    ),
}
