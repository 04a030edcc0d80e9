"""Small models, lists and shards for the tests of CapFilt."""

from __future__ import annotations

import functools
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import torch

from blip_fast.capfilt.models import CapFiltModels, join_models
from blip_fast.capfilt.settings import CapFiltSettings, ScoreSettings, SelectSettings
from blip_fast.config import BlipConfig
from blip_fast.data.demo_pairs import demo_root
from blip_fast.data.tokenizer import load_tokenizer, restrict_vocabulary
from blip_fast.models import BlipCaptioner, BlipITM, BlipPretrain

TEXTS = ("a picture of ", "person: light skin tone, red hair", "a red apple on a green table")
SIZES: dict[str, Any] = dict(text_layers=2, text_width=32, text_heads=2, text_intermediate=64, vit_width=32, vit_depth=2,
                             vit_heads=2, image_size=32, embed_dim=8, queue_size=16)  # fmt: skip
SCORE = ScoreSettings(batch_size=4, unit_size=6, max_length=9)


@functools.cache
def tokenizer():
    return restrict_vocabulary(load_tokenizer(), TEXTS)


def config(**overrides: Any) -> BlipConfig:
    return BlipConfig.tiny(vocab_size=len(tokenizer()), **(SIZES | overrides))


def strong_weights(model: torch.nn.Module, seed: int = 0) -> None:
    """Weights by which the scores of different pairs differ."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3 if parameter.ndim > 1 else 0.05)


def pretrained_model(seed: int = 0) -> BlipPretrain:
    """The same model in every test, whatever ran before."""
    torch.manual_seed(seed)
    model = BlipPretrain(config())
    strong_weights(model, seed)
    return model


@functools.cache
def models() -> CapFiltModels:
    """Captioner and filter with one image encoder."""
    state = pretrained_model().state_dict()
    captioner, matching = BlipCaptioner(config()), BlipITM(config())
    for model in (captioner, matching):
        model.load_state_dict({name: state[name] for name in model.state_dict()})
        model.tokenizer = tokenizer()
    return join_models(captioner, matching)


def save_checkpoint(folder: Path, seed: int = 0) -> str:
    """A pre-trained model with its tokenizer, that is captioner and filter in one."""
    pretrained_model(seed).save_pretrained(folder, tokenizer=tokenizer())
    return str(folder)


def demo_entries(count: int) -> list[dict[str, str]]:
    """Pairs of bundled drawings."""
    entries = json.loads((demo_root() / "train.json").read_text(encoding="utf-8"))
    return [{"image": entry["image"], "caption": entry["caption"]} for entry in entries[:count]]


def write_list(path: Path, entries: list[Any]) -> str:
    path.write_text(json.dumps(entries))
    return str(path)


def write_shard(path: Path, members: list[tuple[str, bytes]]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def shard_members(entries: list[dict[str, str]]) -> list[tuple[str, bytes]]:
    members = []
    for number, entry in enumerate(entries):
        members.append((f"{number:04d}.png", (demo_root() / entry["image"]).read_bytes()))
        members.append((f"{number:04d}.txt", entry["caption"].encode()))
    return members


def settings(images: str | list[str], output: Path, score: ScoreSettings = SCORE, **options: Any) -> CapFiltSettings:
    select = {name: options.pop(name) for name in ("threshold", "keep_fraction", "form") if name in options}
    images = [images] if isinstance(images, str) else images
    options = {"captioner": "unused", "filter": "unused", "image_root": demo_root()} | options
    return CapFiltSettings(images=images, output=output, score=score, select=SelectSettings(**select), **options)


def files_of(folder: Path) -> dict[str, bytes]:
    """Content of every file below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def records_of(folder: Path, stage: str = "records") -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted((folder / stage).glob("*.jsonl")) for line in path.open()]
