"""CapFilt's claim (paper section 4.3, Table 1) tried on drawings whose web texts are known to be right or wrong.

Pictures with a clean caption and a noisy web text are divided at random: a clean part, of which the caption is known, and a web
part, of which only the web text is. Pre-trained on both parts; captioner and filter fine-tuned on the clean part; the web part
captioned and filtered; then pre-trained anew, equally long, on the clean part with each of four web parts. A control takes as
many web texts as the filter keeps, drawn at random: fewer pairs mean more passes over each, and a greater share of clean ones.
"""

from __future__ import annotations

import dataclasses
import json
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedTokenizerFast

from blip_fast.capfilt import CapFiltSettings, ScoreSettings, run_capfilt
from blip_fast.capfilt.job import RECORDS
from blip_fast.capfilt.selection import read_records
from blip_fast.capfilt.tally import Record, texts_of
from blip_fast.checkpoints.files import write_json
from blip_fast.data.annotations import read_list
from blip_fast.data.pretrain import PretrainData
from blip_fast.data.tokenizer import load_tokenizer, restrict_vocabulary
from blip_fast.data.tokens import PROMPT
from blip_fast.data.transforms import eval_transform
from blip_fast.models import BlipPretrain
from blip_fast.tasks.base import RunContext
from blip_fast.tasks.demo import few_threads, train_demo
from blip_fast.tasks.evaluation.nearest import nearest_caption_scores
from blip_fast.tasks.metrics.exact import same_words
from blip_fast.tasks.metrics.filtering import roc_auc
from blip_fast.tasks.small import (
    SmallSizes,
    evaluate_held_out,
    finetune_captioner,
    finetune_filter,
    pretrain_task,
)
from blip_fast.training.seeding import deterministic_algorithms, seed_everything

ROWS = {
    "web": "web texts as they are",
    "filter": "filter only",
    "random": "as many web texts at random",
    "captioner": "captioner only",
    "both": "captioner and filter",
}
FILES = ("train.json", "train_web.json", "test.json")
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class CapFiltDemoSettings:
    """Sizes of the demo.

    Attributes:
        data: folder with ``train.json``, ``train_web.json`` (the same pictures in the same order, each with ``match``)
            and ``test.json``.
        output: folder for models, lists and results; what is finished there is not repeated.
        steps: of each pre-training.
        finetune_steps: of captioner and of filter.
        clean_share: of the pictures, at random.
    """

    data: Path
    output: Path
    steps: int = 1000
    finetune_steps: int = 200
    clean_share: float = 0.25
    sizes: SmallSizes = dataclasses.field(default_factory=SmallSizes)


@dataclasses.dataclass(frozen=True)
class WebPair:
    """A picture with web text; ``match`` is the truth about them and ``caption`` the picture's true caption."""

    image: str
    text: str
    match: bool
    caption: str


def run_seed(settings: CapFiltDemoSettings, seed: int, say: Say) -> dict[str, Any]:
    """The whole chain with one seed; returns metrics of the four rows, of the filter and of the captions."""
    folder = settings.output / f"seed-{seed}"
    clean, web = split_pairs(settings, seed)
    write_json(
        folder / "human.json",
        [{"image": pair.image, "caption": pair.caption, "image_id": pair.image} for pair in clean],
    )
    write_json(folder / "web.json", [{"image": pair.image, "caption": pair.text} for pair in web])
    tokenizer = tokenizer_of(clean, web)
    with deterministic_algorithms(), few_threads():
        run = SeedRun(settings, seed, folder, tokenizer, say)
        rows = {"web": run.row("web", [folder / "web.json"])}
        run.bootstrap()
        for name, pairs in run.row_pairs().items():
            write_json(folder / f"{name}.json", pairs)
            rows[name] = run.row(name, [folder / f"{name}.json"])
    records = list(records_of(folder / "bootstrapped" / RECORDS))
    return {
        "seed": seed,
        "pairs": {"clean": len(clean), "web": len(web)},
        "rows": rows,
        "filter": filter_metrics(records, web),
        "captions": caption_metrics(records, web),
        "nearest": run.nearest(),
    }


def claim_folder(settings: CapFiltDemoSettings) -> None:
    """Note the settings in the output folder, or compare them with those that are noted there."""
    path, wanted = settings.output / "demo.json", dataclasses.asdict(settings)
    wanted |= {"data": str(settings.data.resolve()), "output": None}
    if not path.exists():
        write_json(path, wanted)
    if json.loads(path.read_text(encoding="utf-8")) != wanted:
        raise ValueError(f"output={str(settings.output)!r} holds a demo with other settings; expected another folder")


def split_pairs(settings: CapFiltDemoSettings, seed: int) -> tuple[list[WebPair], list[WebPair]]:
    """The clean part and the web part. ValueError where the two lists are not of the same pictures."""
    for name in FILES:
        if not (settings.data / name).is_file():
            raise FileNotFoundError(f"{settings.data / name} is missing; expected {', '.join(FILES)}")
    train, web = (read_list(settings.data / name) for name in FILES[:2])
    if [entry["image"] for entry in train] != [entry["image"] for entry in web]:
        raise ValueError(
            f"{settings.data}: train.json and train_web.json have different pictures; expected the same ones"
        )
    pairs = [
        WebPair(str((settings.data / entry["image"]).resolve()), other["caption"], other["match"], entry["caption"])
        for entry, other in zip(train, web, strict=True)
    ]
    random.Random(seed).shuffle(pairs)
    clean = round(settings.clean_share * len(pairs))
    return pairs[:clean], pairs[clean:]


def tokenizer_of(clean: Iterable[WebPair], web: Iterable[WebPair]) -> PreTrainedTokenizerFast:
    """A tokenizer with the words that training may see: clean captions, web texts and the captioner's prompt."""
    texts = [PROMPT, *(pair.caption for pair in clean), *(pair.text for pair in web)]
    return restrict_vocabulary(load_tokenizer(), texts)


class SeedRun:
    """The steps of one seed; each leaves a file by which it is known to be done."""

    def __init__(
        self, settings: CapFiltDemoSettings, seed: int, folder: Path, tokenizer: PreTrainedTokenizerFast, say: Say
    ) -> None:
        self.settings, self.sizes, self.seed = settings, settings.sizes, seed
        self.folder, self.tokenizer, self.say = folder, tokenizer, say
        self.context = RunContext(torch.device("cpu"), seed=seed)
        self.config = self.sizes.config(len(tokenizer))
        self.human = folder / "human.json"

    def row(self, name: str, web_files: list[Path]) -> dict[str, Any]:
        """Pre-train on the clean part and the web part in these files; held-out metrics."""
        path = self.folder / f"row-{name}.json"
        if not path.exists():
            started = time.perf_counter()
            model = self.pretrain([self.human, *web_files])
            metrics = evaluate_held_out(model, self.tokenizer, self.held_out(), self.sizes)
            model.save_pretrained(self.folder / f"pretrained-{name}", tokenizer=self.tokenizer)
            metrics["pairs"] = sum(len(read_list(file)) for file in [self.human, *web_files])
            metrics["seconds"] = time.perf_counter() - started
            write_json(path, metrics)
        metrics = json.loads(path.read_text(encoding="utf-8"))
        self.say(f"seed {self.seed}, {ROWS[name]}: " + "  ".join(f"{k} {v:.3g}" for k, v in metrics.items()))
        return cast(dict[str, Any], metrics)

    def pretrain(self, files: list[Path]) -> BlipPretrain:
        """A new model, pre-trained."""
        seed_everything(self.seed)
        task = pretrain_task(files, self.tokenizer, self.sizes, self.settings.steps, self.context)
        model = BlipPretrain(self.config)
        train_demo(task, model, lambda *report: None)
        return model.eval()

    def held_out(self) -> PretrainData:
        """The pairs that no model has seen."""
        transform = eval_transform(self.sizes.image_size)
        return PretrainData([self.settings.data / "test.json"], self.settings.data, transform,
                            tokenizer=self.tokenizer, max_tokens=self.sizes.max_tokens, keep_decoded=True)  # fmt: skip

    def bootstrap(self) -> None:
        """Fine-tune captioner and filter from the pre-trained model, and run both over the web part."""
        steps = self.settings.finetune_steps
        for name, finetune in (("captioner", finetune_captioner), ("filter", finetune_filter)):
            if not (self.folder / name / "config.json").exists():
                seed_everything(self.seed)
                pretrained = BlipPretrain.from_pretrained(self.folder / "pretrained-web")
                model = finetune(pretrained, self.human, self.tokenizer, self.sizes, steps, self.context)
                model.save_pretrained(self.folder / name, tokenizer=self.tokenizer)
        score = ScoreSettings(seed=self.seed, max_length=self.sizes.max_tokens, batch_size=64)
        manifest = run_capfilt(
            CapFiltSettings(
                images=(str(self.folder / "web.json"),),
                image_root=self.settings.data.resolve(),
                captioner=str(self.folder / "captioner"),
                filter=str(self.folder / "filter"),
                output=self.folder / "bootstrapped",
                score=score,
            )
        )
        assert manifest is not None
        kept = {
            kind: f"{manifest[kind]['kept']} of {manifest[kind]['in']} {kind} texts" for kind in ("web", "synthetic")
        }
        self.say(f"seed {self.seed}: kept {kept['web']} and {kept['synthetic']}")

    def row_pairs(self) -> dict[str, list[dict[str, str]]]:
        """The web part of the other rows of the table."""
        records = list(records_of(self.folder / "bootstrapped" / RECORDS))
        kept = pairs_of(records, lambda kind, text: kind == "web" and text["kept"])
        return {
            "filter": kept,
            "random": random.Random(self.seed).sample(read_list(self.folder / "web.json"), len(kept)),
            "captioner": pairs_of(records, lambda kind, text: bool(text["text"])),
            "both": pairs_of(records, lambda kind, text: text["kept"]),
        }

    def nearest(self) -> dict[str, float]:
        """Scores of a baseline that learns nothing: the caption of the nearest picture of the clean part."""
        transform = eval_transform(self.sizes.image_size)
        known = PretrainData([self.human], self.settings.data, transform, tokenizer=self.tokenizer)
        return nearest_caption_scores(known, self.held_out())


def records_of(folder: Path) -> Iterable[Record]:
    """All records of a stage of a run."""
    for path in sorted(folder.glob("*.jsonl")):
        yield from read_records(path)


def pairs_of(records: list[Record], wanted: Callable[[str, Record], bool]) -> list[dict[str, str]]:
    """{image, caption} of the texts that are wanted."""
    return [
        {"image": record["image"], "caption": text["text"]}
        for record in records
        for kind, text in texts_of(record)
        if wanted(kind, text)
    ]


def filter_metrics(records: list[Record], web: list[WebPair]) -> dict[str, float]:
    """How well the filter tells right web texts from wrong ones: area under the ROC curve, and shares kept."""
    scores = torch.tensor([record["web"]["itm"] for record in records], dtype=torch.float64)
    kept = torch.tensor([record["web"]["kept"] for record in records]).double()
    match = torch.tensor([pair.match for pair in web])
    cosine = torch.tensor([record["web"]["cosine"] for record in records], dtype=torch.float64)
    return {
        "auc_itm": roc_auc(scores, match),
        "auc_itc": roc_auc(cosine, match),
        "noise": float((~match).double().mean()),
        "right_kept": float(kept[match].mean()),
        "wrong_kept": float(kept[~match].mean()),
    }


def caption_metrics(records: list[Record], web: list[WebPair]) -> dict[str, float]:
    """How many synthetic captions are the true one to the word, before and after the filter."""
    pairs = zip(records, web, strict=True)
    exact = torch.tensor([same_words(record["synthetic"][0]["text"], pair.caption) for record, pair in pairs]).double()
    kept = torch.tensor([record["synthetic"][0]["kept"] for record in records])
    return {
        "exact": float(exact.mean()),
        "kept": float(kept.double().mean()),
        "exact_of_kept": float(exact[kept].mean()) if kept.any() else 0.0,
    }


def summarise(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean, least and largest value over the seeds of every number in results of equal form."""
    if isinstance(results[0], dict):
        return {name: summarise([result[name] for result in results]) for name in results[0]}
    values = cast(list[float], results)
    return {"mean": sum(values) / len(values), "min": min(values), "max": max(values)}


def run_capfilt_demo(settings: CapFiltDemoSettings, seeds: int, say: Say = print) -> dict[str, Any]:
    """All seeds, and their summary; ``results.json`` in the output folder holds the same.

    Raises ValueError where the folder holds a demo with other settings, or the data is not as expected.
    """
    claim_folder(settings)
    runs = [run_seed(settings, seed, say) for seed in range(seeds)]
    numbers = [{name: run[name] for name in ("rows", "filter", "captions", "nearest")} for run in runs]
    result = {
        "steps": settings.steps,
        "finetune_steps": settings.finetune_steps,
        "clean_share": settings.clean_share,
        "sizes": dataclasses.asdict(settings.sizes),
        "seeds": runs,
        "summary": summarise(numbers),
    }
    write_json(settings.output / "results.json", result)
    return result
