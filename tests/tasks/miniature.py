"""Every published data set in miniature: the published files and formats, filled with bundled drawings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from blip_fast.data.demo_pairs import demo_root

TRAIN, EVAL = 8, 5  # pictures to train on, and in each of the splits val and test
# A model of the published vocabulary and hardly anything else.
MODEL: dict[str, Any] = dict(
    text_layers=1,
    text_width=32,
    text_heads=2,
    text_intermediate=32,
    max_position_embeddings=48,
    vit_width=32,
    vit_depth=1,
    vit_heads=2,
    vit_patch=16,
    embed_dim=16,
)
_VERBS = ("sees", "holds", "likes")


def overrides(folder: Path, program: str) -> dict[str, Any]:
    """Settings that turn the published YAML file of a program to the miniature in ``folder`` and to a tiny model."""
    common = dict(image_size=32, model=MODEL, workers=0, pretrained="", tensorboard=False)
    roots = dict(image_root=str(folder / "images"), ann_root=str(folder / "annotation"))
    training = dict(max_epoch=2)
    own: dict[str, dict[str, Any]] = {
        "pretrain": dict(
            train_file=[str(folder / "annotation" / "pretrain.json")],
            batch_size=2,
            queue_size=6,
            init_vit="",
            init_bert="",
            **training,
        ),
        "retrieval": dict(
            batch_size_train=2, batch_size_test=3, queue_size=6, k_test=4, vit_ckpt_layer=1, **roots, **training
        ),
        "caption": dict(
            batch_size=2,
            coco_gt_root=str(folder / "annotation" / "coco_gt"),
            max_length=8,
            num_beams=2,
            java_metrics=False,
            **roots,
            **training,
        ),
        "vqa": dict(
            vqa_root=roots["image_root"],
            vg_root=roots["image_root"],
            ann_root=roots["ann_root"],
            batch_size_train=2,
            batch_size_test=3,
            k_test=2,
            **training,
        ),
        "nlvr": dict(batch_size_train=2, batch_size_test=3, **roots, **training),
        "nocaps": dict(batch_size=3, max_length=8, num_beams=2, **roots),
        "retrieval_video": dict(
            video_root=str(folder / "videos"), ann_root=roots["ann_root"], batch_size=2, k_test=2, num_frm_test=3
        ),
    }
    return common | own[program]


def build(folder: Path) -> Path:
    """Write all data sets into ``folder`` and return it."""
    pairs = json.loads((demo_root() / "train.json").read_text())
    train = _pictures(folder, "train2014", pairs[:TRAIN], 100)
    val = _pictures(folder, "val2014", pairs[TRAIN : TRAIN + EVAL], 200)
    test = _pictures(folder, "val2014", pairs[TRAIN + EVAL : TRAIN + 2 * EVAL], 300)
    _pretrain(folder, train)
    for prefix in ("coco_karpathy", "flickr30k"):
        _pairs(folder, prefix, train, {"val": val, "test": test})
    _references(folder, {"val": val, "test": test})
    _vqa(folder, train, test)
    _nlvr(folder, {"train": train, "dev": val, "test": test})
    for split, pictures in (("val", val), ("test", test)):
        _write(folder / f"nocaps_{split}.json", [dict(image=name, img_id=number) for name, number, _ in pictures])
    _videos(folder, test[:3])
    return folder


Pictures = Sequence[tuple[str, int, str]]  # path below the image root, number, caption


def _pictures(folder: Path, split: str, pairs: Sequence[dict[str, str]], first: int) -> Pictures:
    (folder / "images" / split).mkdir(parents=True, exist_ok=True)
    pictures = []
    for number, pair in enumerate(pairs, first):
        name = f"{split}/COCO_{split}_{number:012d}.png"
        shutil.copy(demo_root() / pair["image"], folder / "images" / name)
        pictures.append((name, number, pair["caption"]))
    return pictures


def _write(file: Path, content: Any) -> None:
    annotation = file.parent / "annotation" / file.name
    annotation.parent.mkdir(exist_ok=True)
    annotation.write_text(json.dumps(content))


def _pretrain(folder: Path, pictures: Pictures) -> None:
    root = folder / "images"
    _write(folder / "pretrain.json", [dict(image=str(root / name), caption=text) for name, _, text in pictures])


def _captions(caption: str) -> list[str]:
    return [caption, f"A drawing of {caption}!"]


def _pairs(folder: Path, prefix: str, train: Pictures, splits: dict[str, Pictures]) -> None:
    entries = [dict(image=name, caption=text, image_id=f"id_{number}") for name, number, text in train]
    _write(folder / f"{prefix}_train.json", entries)
    for split, pictures in splits.items():
        content = [dict(image=name, caption=_captions(text)) for name, _, text in pictures]
        _write(folder / f"{prefix}_{split}.json", content)


def _references(folder: Path, splits: dict[str, Pictures]) -> None:
    for split, pictures in splits.items():
        annotations = [
            dict(image_id=number, id=10 * number + n, caption=caption)
            for _, number, text in pictures
            for n, caption in enumerate(_captions(text))
        ]
        content = dict(annotations=annotations, images=[dict(id=number) for _, number, _ in pictures])
        file = folder / "annotation" / "coco_gt" / f"coco_karpathy_{split}_gt.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content))


def _vqa(folder: Path, train: Pictures, test: Pictures) -> None:
    def question(source: str, picture: tuple[str, int, str], **more: Any) -> dict[str, Any]:
        return dict(dataset=source, image=picture[0], question="What is this?", question_id=picture[1], **more)

    answers = ["a person"] * 7 + ["a man", "a man", "people"]
    _write(folder / "vqa_train.json", [question("vqa", picture, answer=answers) for picture in train[:4]])
    _write(folder / "vqa_val.json", [question("vqa", picture, answer=answers) for picture in train[4:6]])
    _write(folder / "vg_qa.json", [question("vg", picture, answer="a person") for picture in train[6:]])
    _write(folder / "vqa_test.json", [question("vqa", picture) for picture in test])
    _write(folder / "answer_list.json", ["a person", "a man", "people", "a cat"])


def _nlvr(folder: Path, splits: dict[str, Pictures]) -> None:
    for split, pictures in splits.items():
        names = [name for name, _, _ in pictures]
        content = [
            dict(images=[left, right], sentence=f"The left one {_VERBS[n % 3]} the right one.", label=str(n % 2 == 0))
            for n, (left, right) in enumerate(zip(names, names[1:] + names[:1], strict=True))
        ]
        _write(folder / f"nlvr_{split}.json", content)


def _videos(folder: Path, pictures: Pictures) -> None:
    lines = []
    for name, number, text in pictures:
        with Image.open(folder / "images" / name) as picture:
            frame = np.asarray(picture.convert("RGB").resize((64, 64)))
        write_video(folder / "videos" / f"video{number}.mp4", [np.roll(frame, 8 * step, axis=1) for step in range(6)])
        lines.append(json.dumps(dict(clip_name=f"video{number}", caption=text)))
    (folder / "annotation" / "msrvtt_test.jsonl").write_text("\n".join(lines) + "\n")


def write_video(file: Path, frames: Iterable[np.ndarray]) -> None:
    """Frames (H, W, 3) uint8 as an MPEG-4 film of one frame per second."""
    file.parent.mkdir(exist_ok=True)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
