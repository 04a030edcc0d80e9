"""How often captions with int8 weights are those with fp32 weights, and how long both take on this CPU.

    python -m blip_fast.benchmarks.models.int8_agreement FOLDER --output benchmarks/results/int8_agreement.json

FOLDER is a checkpoint with a text decoder, such as ``demo/model`` that ``make demo`` trains. The pictures are the 208 bundled
drawings, those held out of training counted apart too.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from blip_fast.checkpoints.files import write_text
from blip_fast.data.demo_pairs import demo_pairs
from blip_fast.data.transforms import eval_transform
from blip_fast.generation import GeneratedIds, to_int8
from blip_fast.models import BlipCaptioner

ROUNDS = 5


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("checkpoint", type=click.Path(exists=True))
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here, as JSON.")
def main(checkpoint: str, output: Path | None) -> None:
    """Caption the bundled drawings with the captioner in CHECKPOINT in fp32 and with int8 weights."""
    exact = BlipCaptioner.from_pretrained(checkpoint)
    small = to_int8(exact)
    figures = {split: compare(exact, small, pictures(split, exact.config.image_size)) for split in ("test", "train")}
    text = json.dumps(figures, indent=1)
    click.echo(text)
    if output is not None:
        write_text(output, text + "\n")


def pictures(split: str, image_size: int) -> Tensor:
    """The drawings of a split, (N, 3, S, S)."""
    pairs = demo_pairs(split, eval_transform(image_size))
    return torch.stack([pairs[index].image for index in range(len(pairs))])


def compare(exact: BlipCaptioner, small: BlipCaptioner, images: Tensor) -> dict[str, Any]:
    """Share of equal captions and of equal tokens, difference of scores, and seconds of both, in turns."""
    start = torch.tensor([exact.config.dec_token_id])

    def caption(model: BlipCaptioner) -> GeneratedIds:
        result = model.generate_ids(images, start, num_beams=3, max_length=30, min_length=2, return_scores=True)
        assert isinstance(result, GeneratedIds)
        return result

    first, second = caption(exact), caption(small)
    width = min(first.ids.shape[1], second.ids.shape[1])
    pairs = [(a.tolist(), b.tolist()) for a, b in zip(first.ids, second.ids, strict=True)]
    same = [words(a) == words(b) for a, b in pairs]
    seconds = timed({"fp32": lambda: caption(exact), "int8": lambda: caption(small)})
    equal = torch.tensor(same)
    return {
        "pictures": len(images),
        "equal_captions": sum(same) / len(same),
        "equal_tokens": float(
            (first.ids[:, :width] == second.ids[:, :width])[first.generated[:, :width]].float().mean()
        ),
        "score_difference": float((first.scores - second.scores)[equal].abs().mean()) if any(same) else None,
        "seconds": seconds,
    }


def words(ids: list[int]) -> list[int]:
    """Ids without padding."""
    return [token for token in ids if token]


def timed(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median seconds of each call, in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    main(prog_name="python -m blip_fast.benchmarks.models.int8_agreement")
