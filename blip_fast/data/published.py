"""Where the published annotation files are. Nothing is ever fetched from there by itself."""

from __future__ import annotations

_STORE = "https://storage.googleapis.com/sfr-vision-language-research/datasets"

PUBLISHED_ANNOTATIONS = (
    "coco_karpathy_train.json",
    "coco_karpathy_val.json",
    "coco_karpathy_test.json",
    "coco_karpathy_val_gt.json",
    "coco_karpathy_test_gt.json",
    "flickr30k_train.json",
    "flickr30k_val.json",
    "flickr30k_test.json",
    "vqa_train.json",
    "vqa_val.json",
    "vqa_test.json",
    "vg_qa.json",
    "answer_list.json",
    "nlvr_train.json",
    "nlvr_dev.json",
    "nlvr_test.json",
    "nocaps_val.json",
    "nocaps_test.json",
    "msrvtt_test.jsonl",
    "vg_caption.json",
)


def published_address(file_name: str) -> str | None:
    """Web address of a published annotation file, or None for another name."""
    return f"{_STORE}/{file_name}" if file_name in PUBLISHED_ANNOTATIONS else None
