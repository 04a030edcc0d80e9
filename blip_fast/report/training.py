"""The page of a training run: curves, results, settings, environment, sample predictions."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from blip_fast.report.figures import line_plot
from blip_fast.report.page import inline_svg, picture_uri, render
from blip_fast.training.logs import HISTORY, LOG, read_lines

# Of what history.jsonl has, what a curve says nothing about.
_NOT_CURVES = ("epoch", "step", "alpha", "memory_bytes")
_TITLES = {
    "lr": "learning rate",
    "loss": "loss",
    "loss_ita": "contrastive loss (ITC)",
    "loss_itm": "matching loss (ITM)",
    "loss_lm": "language-modelling loss (LM)",
    "images_per_s": "images per second",
    "mfu": "share of the machine's arithmetic (MFU)",
}
_THUMBNAIL = (224, 224)


def training_page(folder: Path) -> str:
    """The page of the run in ``folder``, as HTML that needs nothing else. Texts of the run are escaped.

    Raises FileNotFoundError where there is no run.
    """
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"{folder} has no config.yaml; expected the output folder of a training run")
    history, log = read_lines(folder / HISTORY), read_lines(folder / LOG)
    environment = read_json(folder / "environment.json", {})
    return render(
        "training.html",
        title=f"{environment.get('program', 'training')}: {folder.name}",
        curves=[inline_svg(svg) for svg in history_curves(history) + metric_curves(log)],
        log=log,
        columns=list(dict.fromkeys(name for line in log for name in line)),
        settings=yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")) or {},
        environment=environment,
        samples=[sample_card(sample) for sample in read_json(folder / "samples.json", [])],
        evaluations=read_lines(folder / "evaluate.txt"),
    )


def history_curves(history: list[dict[str, Any]]) -> list[str]:
    """A curve over the lines of history.jsonl for each of its values; the horizontal axis is in epochs."""
    names = [name for name in dict.fromkeys(key for line in history for key in line) if name not in _NOT_CURVES]
    longest = max((line["step"] for line in history), default=0) + 1
    curves = []
    for name in names:
        lines = [line for line in history if name in line]
        epochs = [line["epoch"] + line["step"] / longest for line in lines]
        curves.append(line_plot(epochs, {name: [line[name] for line in lines]}, _TITLES.get(name, name)))
    return curves


def metric_curves(log: list[dict[str, Any]]) -> list[str]:
    """One figure for each metric of val and test in log.txt, with a line for each of the two."""
    found: dict[str, dict[str, list[float]]] = {}
    lines = [line for line in log if "epoch" in line]
    for split in ("val", "test"):
        for key in lines[-1] if lines else ():
            if key.startswith(f"{split}_") and all(key in line for line in lines):
                name = key.removeprefix(f"{split}_")
                found.setdefault(name, {})[split] = [float(line[key]) for line in lines]
    epochs = [float(line["epoch"]) for line in lines]
    return [line_plot(epochs, values, name) for name, values in found.items()] if len(lines) > 1 else []


def sample_card(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A prediction with its picture as a data URI; None where the file is gone or no picture."""
    uri = None
    # PIL raises all sorts of things for damaged files, a SyntaxError among them
    with contextlib.suppress(Exception), Image.open(str(sample.get("picture", ""))) as picture:
        small = picture.convert("RGB")
        small.thumbnail(_THUMBNAIL)
        uri = picture_uri(small)
    return {"uri": uri, "texts": {name: text for name, text in sample.items() if name != "picture"}}


def read_json(path: Path, default: Any) -> Any:
    """Content of a JSON file, or ``default`` where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else default
