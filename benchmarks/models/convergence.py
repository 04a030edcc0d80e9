"""Do the published and the fused path learn alike? 300 pre-training steps on the bundled drawings.

    python -m blip_fast.benchmarks.models.convergence --output benchmarks/results

Without dropout and with given negatives both paths compute the same function, and their loss curves must stay within 1e-3 of
each other, relative to the loss. Training amplifies differences of rounding, the more the higher the learning rate: a third
curve, of the published path from weights disturbed by 1e-7, shows how much. With dropout and drawn negatives the paths use
different random numbers: the difference of their mean losses over the last 50 steps must be within the spread of the
published path over three seeds. Finished curves are read from the output; delete convergence.json to train anew.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from blip_fast import models, reference
from blip_fast.checkpoints.files import write_json
from blip_fast.config import BlipConfig
from blip_fast.data.demo_pairs import demo_root
from blip_fast.optim import AdamWMomentum

PATHS = ("reference", "blip_fast")
DISTURBED = "reference, disturbed"
DISTURBANCE = 1e-7  # relative; fp32 rounds at 6e-8
SEEDS = (0, 1, 2)
LOSSES = ("itc", "itm", "lm")
FIRST_WORD = 1000  # ids below are special tokens
TOLERANCE = 1e-3
LAST = 50  # steps over which final losses are averaged
WINDOW = 10  # steps over which the plot is smoothed


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How long and how to train: learning rate rising for ``warmup`` steps, then constant."""

    steps: int = 300
    batch: int = 26
    lr: float = 1.5e-4
    warmup: int = 30
    weight_decay: float = 0.05
    alpha: float = 0.4


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Images (P, 3, S, S) and their captions: ids and mask (P, N)."""

    images: Tensor
    ids: Tensor
    mask: Tensor
    vocabulary: int


def load_pairs(folder: Path, image_size: int) -> Pairs:
    """The pictures of ``train.json``; every word of a caption is a token."""
    records = json.loads((folder / "train.json").read_text(encoding="utf-8"))
    texts = [record["caption"].lower().replace(",", "").replace(":", "").split() for record in records]
    words = {word: FIRST_WORD + number for number, word in enumerate(dict.fromkeys(itertools.chain(*texts)))}
    ids = torch.zeros(len(texts), 2 + max(map(len, texts)), dtype=torch.int64)
    for row, text in zip(ids, texts, strict=True):
        tokens = [BlipConfig.cls_token_id, *(words[word] for word in text), BlipConfig.sep_token_id]
        row[: len(tokens)] = torch.tensor(tokens)
    pictures = [load_picture(folder / record["image"], image_size) for record in records]
    return Pairs(torch.stack(pictures), ids, (ids != 0).long(), FIRST_WORD + len(words) + 2)


def load_picture(path: Path, image_size: int) -> Tensor:
    """A picture on white, (3, S, S) in [-1, 1]."""
    with Image.open(path) as file:
        drawn = file.convert("RGBA")
    picture = Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn).convert("RGB")
    pixels = np.asarray(picture.resize((image_size, image_size), Image.Resampling.BICUBIC), dtype=np.float32)
    return torch.from_numpy(pixels / 127.5 - 1.0).permute(2, 0, 1)


def train(path: str, pairs: Pairs, config: BlipConfig, recipe: Recipe, seed: int) -> NDArray[np.float64]:
    """Losses (steps, 3) of one path. Weights and order of the data follow from the seed alone.

    Without dropout negatives are given; else they are drawn, as dropout is, from each path's own random numbers.
    """
    torch.manual_seed(seed)
    model: Any = (models if path == "blip_fast" else reference).BlipPretrain(config).train()
    if path == DISTURBED:
        for parameter in model.parameters():
            parameter.data *= 1 + DISTURBANCE * torch.randn_like(parameter)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    options: dict[str, Any] = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(trained, **options)
    if path == "blip_fast":
        model.momentum_in_forward = False
        optimizer = AdamWMomentum(trained, model.momentum_pairs(), config.momentum, **options)
    order = torch.Generator().manual_seed(seed)
    losses = []
    for step in range(recipe.steps):
        rows = torch.randperm(len(pairs.images), generator=order)[: recipe.batch]
        shift = int(torch.randint(1, recipe.batch, (1,), generator=order))
        given = None if config.hidden_dropout else (torch.arange(recipe.batch).roll(shift),) * 2
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * min(1.0, (step + 1) / recipe.warmup)
        optimizer.zero_grad()
        out = model(pairs.images[rows], pairs.ids[rows], pairs.mask[rows], alpha=recipe.alpha, negatives=given)
        out.loss.backward()
        optimizer.step()
        losses.append([loss.item() for loss in (out.loss_itc, out.loss_itm, out.loss_lm)])
    return np.array(losses)


def small_config(vocabulary: int, dropout: float) -> BlipConfig:
    """A model that learns the drawings in a few minutes in all."""
    sizes = {"image_size": 32, "max_position_embeddings": 32, "queue_size": 104, "momentum": 0.98}
    return BlipConfig.tiny(vocab_size=vocabulary, hidden_dropout=dropout, attention_dropout=dropout, **sizes)


def curve_name(path: str, dropout: float, seed: int) -> str:
    """Key of a curve in the results."""
    return f"{path}, dropout {dropout:g}, seed {seed}"


def relative_difference(curves: dict[str, NDArray[np.float64]], path: str) -> NDArray[np.float64]:
    """Distance (steps,) of a path's summed losses from the published path's, without dropout."""
    published, other = (curves[curve_name(name, 0.0, SEEDS[0])].sum(1) for name in (PATHS[0], path))
    return np.abs(other - published) / published


def judge(curves: dict[str, NDArray[np.float64]], dropout: float) -> dict[str, float | bool]:
    """The largest relative difference without dropout, and with it the final difference and spread, against their limits."""
    difference, disturbed = (float(relative_difference(curves, path).max()) for path in (PATHS[1], DISTURBED))
    finals = {
        path: [float(curves[curve_name(path, dropout, seed)][-LAST:].sum(1).mean()) for seed in SEEDS] for path in PATHS
    }
    published_finals, our_finals = (finals[path] for path in PATHS)
    spread = max(published_finals) - min(published_finals)
    final_difference = abs(float(np.mean(our_finals)) - float(np.mean(published_finals)))
    return {
        "largest_relative_difference": difference,
        "the_same_of_disturbed_weights": disturbed,
        "same_without_dropout": difference <= TOLERANCE,
        "final_difference": final_difference,
        "spread_over_seeds": spread,
        "alike_with_dropout": final_difference <= spread,
    }


def plot(curves: dict[str, NDArray[np.float64]], dropout: float, file: Path) -> None:
    """Sum of the three losses: without dropout, how far apart, and with dropout for each seed."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "blip_fast"  # the same curves give the same file
    from matplotlib import pyplot

    figure, (same, apart, seeds) = pyplot.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for path, style in zip(PATHS, ("-", "--"), strict=True):
        same.plot(curves[curve_name(path, 0.0, SEEDS[0])].sum(1), style, label=path)
    same.set(title="without dropout, same negatives", xlabel="step", ylabel="ITC + ITM + LM loss")
    same.legend()
    for path, color in ((PATHS[1], "C1"), (DISTURBED, "C2")):
        apart.semilogy(relative_difference(curves, path), color=color, linewidth=0.8, label=path)
    apart.axhline(TOLERANCE, color="gray", linestyle=":", label="aim")
    apart.set(title="relative difference from the reference", xlabel="step", ylim=(1e-9, 1e-2))
    apart.legend()
    for path, color in zip(PATHS, ("C0", "C1"), strict=True):
        for seed in SEEDS:
            total = curves[curve_name(path, dropout, seed)].sum(1)
            smooth = np.convolve(total, np.ones(WINDOW) / WINDOW, "valid")
            seeds.plot(smooth, color=color, alpha=0.8, label=path if seed == SEEDS[0] else None)
    seeds.set(title=f"dropout {dropout:g}, three seeds (mean of {WINDOW} steps)", xlabel="step")
    seeds.legend()
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def read_curves(file: Path, settings: dict[str, Any]) -> dict[str, NDArray[np.float64]]:
    """Curves of an earlier run with the same settings; none where there is no such file."""
    if not file.exists():
        return {}
    document = json.loads(file.read_text())
    if document["settings"] != settings:
        return {}
    return {name: np.array(losses) for name, losses in document["curves"].items()}


@click.command()
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), default=demo_root())
@click.option("--steps", type=click.IntRange(min=LAST), default=Recipe.steps, show_default=True)
@click.option("--dropout", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.1, show_default=True)
def main(output: Path, data: Path, steps: int, dropout: float) -> None:
    """Train the curves that are missing; write convergence.json and convergence.svg; exit with 1 where the paths differ."""
    recipe = Recipe(steps=steps)
    pairs = load_pairs(data, small_config(FIRST_WORD + 3, 0.0).image_size)
    config = small_config(pairs.vocabulary, dropout)
    settings = {"recipe": dataclasses.asdict(recipe), "model": config.to_dict(), "torch": torch.__version__}
    file = output / "convergence.json"
    curves = read_curves(file, settings)
    wanted = [(path, 0.0, SEEDS[0]) for path in (*PATHS, DISTURBED)]
    wanted += [(path, dropout, seed) for seed in SEEDS for path in PATHS]
    for path, probability, seed in wanted:
        name = curve_name(path, probability, seed)
        if name not in curves:
            print(name, flush=True)
            curves[name] = train(path, pairs, small_config(pairs.vocabulary, probability), recipe, seed)
        lists = {key: curve.round(7).tolist() for key, curve in curves.items()}
        write_json(file, {"settings": settings, "losses": LOSSES, "curves": lists})
    verdict = judge(curves, dropout)
    write_json(file, {"settings": settings, "verdict": verdict, "losses": LOSSES, "curves": lists})
    plot(curves, dropout, output / "convergence.svg")
    for key, value in verdict.items():
        print(f"{key}: {value if isinstance(value, bool) else f'{value:.3g}'}")
    raise SystemExit(not (verdict["same_without_dropout"] and verdict["alike_with_dropout"]))


if __name__ == "__main__":
    main()
