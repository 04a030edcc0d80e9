"""A run on real data from end to end: the programs ``pretrain``, ``retrieval`` and ``caption`` on the emoji set.

The test pictures are combinations of words that training has seen apart only, such as a skin tone and a profession.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from pathlib import Path
from typing import Any

from blip_fast.checkpoints.files import write_json
from blip_fast.config import BlipConfig
from blip_fast.data.pretrain import PretrainData
from blip_fast.data.transforms import eval_transform
from blip_fast.tasks.evaluation.captions import captions_by_image
from blip_fast.tasks.evaluation.nearest import nearest_caption_scores
from blip_fast.tasks.metrics.exact import score_captions
from blip_fast.tasks.programs import PROGRAMS
from blip_fast.tasks.run import run_task
from blip_fast.tasks.small import SmallSizes
from blip_fast.training.distributed import Rank, find_device
from blip_fast.training.engine import RunOptions
from blip_fast.training.environment import environment
from blip_fast.training.logs import LOG, read_lines

PASSES = 3
SPLITS = ("train", "val", "test")
_SIZES = SmallSizes(max_tokens=64)
# Captions tell colours and left from right, and name what stands at the edge: no flips, gentle crops.
_AUGMENTATION = dict(crop_share=_SIZES.crop_share, flip=False, rand_augment=False)
_CONFIG = _SIZES.config(BlipConfig().vocab_size).to_dict()
_MODEL = {name: value for name, value in _CONFIG.items() if name not in ("image_size", "queue_size")}
_COMMON: dict[str, Any] = dict(
    image_size=_SIZES.image_size, model=_MODEL, passes_per_epoch=PASSES, workers=0, max_bad_samples=0, log_every=20
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long the three programs train, in epochs of ``PASSES`` passes over the pairs."""

    pretrain: int = 13
    retrieval: int = 13
    caption: int = 3

    def shortened(self, share: float) -> Plan:
        """The same with ``share`` of the epochs, at least one each."""
        return Plan(**{name: max(1, round(share * epochs)) for name, epochs in dataclasses.asdict(self).items()})


def settings_of(plan: Plan, data: Path, output: Path) -> dict[str, dict[str, Any]]:
    """Settings of each program, in the order in which they run."""
    last = output / "pretrain" / f"checkpoint_{plan.pretrain - 1:02d}.pth"
    roots = dict(image_root=str(data), ann_root=str(output / "annotation"))
    fine_tuning = dict(pretrained=str(last), **roots)
    return {
        "pretrain": _COMMON
        | _AUGMENTATION
        | dict(
            train_file=[str(data / "train.json")],
            image_root=str(data),
            init_vit="",
            init_bert="",
            batch_size=_SIZES.batch_size,
            queue_size=512,
            init_lr=_SIZES.lr,
            warmup_steps=200,
            lr_decay_rate=0.05 ** (1 / plan.pretrain),
            max_epoch=plan.pretrain,
            keep_last=1,
        ),
        "retrieval": _COMMON
        | _AUGMENTATION
        | dict(
            **fine_tuning,
            dataset="coco",
            batch_size_train=_SIZES.batch_size,
            queue_size=512,
            init_lr=_SIZES.finetune_lr,
            k_test=16,
            negative_all_rank=False,
            vit_grad_ckpt=False,
            max_epoch=plan.retrieval,
        ),
        "caption": _COMMON
        | _AUGMENTATION
        | dict(
            **fine_tuning,
            coco_gt_root="",
            batch_size=_SIZES.batch_size,
            init_lr=3e-4,
            max_length=30,
            max_epoch=plan.caption,
            java_metrics=False,
        ),
    }


def prepare(data: Path, output: Path) -> None:
    """Give the emoji set's annotation files, whose format it already is, the names of COCO's.

    Raises FileNotFoundError where ``data`` is no emoji set, FileExistsError where ``output`` holds an earlier run.
    """
    for split in SPLITS:
        if not (data / f"{split}.json").is_file():
            raise FileNotFoundError(f"data={str(data)!r} has no {split}.json; 'blip-fast data emoji' makes the set")
    if output.exists() and any(output.iterdir()):
        raise FileExistsError(f"output={str(output)!r} is not empty; expected a new folder")
    (output / "annotation").mkdir(parents=True)
    for split in SPLITS:
        shutil.copyfile(data / f"{split}.json", output / "annotation" / f"coco_karpathy_{split}.json")


def run_train_demo(data: Path, output: Path, plan: Plan, seed: int, device: str = "cpu") -> dict[str, Any]:
    """Train and evaluate; everything measured, which is also written to ``output/results.json``."""
    prepare(data, output)
    seconds: dict[str, float] = {}
    settings = settings_of(plan, data, output)
    for program, values in settings.items():
        started = time.perf_counter()
        task_class = PROGRAMS[program].task_class()
        chosen = task_class.settings_class.model_validate(values)
        run_task(task_class, chosen, RunOptions(), output / program, device=device, seed=seed)
        seconds[program] = time.perf_counter() - started
    results = {
        "seed": seed,
        "epochs": dataclasses.asdict(plan),
        "seconds": seconds,
        "environment": environment(find_device(device, Rank())),
        "retrieval": retrieval_results(output / "retrieval"),
        "captions": caption_results(data, output / "caption"),
        "settings": settings,
    }
    write_json(output / "results.json", results)
    return results


def retrieval_results(folder: Path) -> dict[str, float]:
    """Recalls on the test pairs, in per cent, by the epoch that is best on the validation pairs."""
    last = read_lines(folder / LOG)[-1]  # it holds the test metrics of the best epoch so far
    return {name.removeprefix("test_"): value for name, value in last.items() if name.startswith("test_")}


def caption_results(data: Path, folder: Path) -> dict[str, dict[str, float]]:
    """Scores of the best epoch's test captions, and of those copied from the nearest training picture."""
    best = read_lines(folder / LOG)[-1]["best_epoch"]
    entries = json.loads((folder / "result" / f"test_epoch{best}.json").read_text(encoding="utf-8"))
    train, test = (
        PretrainData([data / f"{name}.json"], data, eval_transform(_SIZES.image_size)) for name in ("train", "test")
    )
    written = captions_by_image(entries)
    return {
        "model": score_captions([written[record.image_id] for record in test.records], test.captions),
        "nearest_picture": nearest_caption_scores(train, test),
    }
