"""``blip-fast train-demo``: the launcher's programs on the emoji set, with their results on pictures not trained on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from blip_fast.cli.options import NumberRange

if TYPE_CHECKING:
    from rich.table import Table


@click.command(name="train-demo", context_settings={"show_default": True})
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("emoji"),
    help="Folder of the emoji set; it is built where it does not exist.",
)
@click.option(
    "--debs", type=click.Path(exists=True, file_okay=False, path_type=Path), help="See `blip-fast data emoji`."
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("train-demo"),
    help="New folder for results.",
)
@click.option("--share", type=NumberRange(0, 1, min_open=True), default=1.0, help="Share of the epochs to train.")
@click.option("--seed", type=click.IntRange(min=0), default=42, help="Seed of all random numbers.")
@click.option("--device", default="cpu", help="torch device, such as cpu or cuda.")
def command(data: Path, debs: Path | None, output: Path, share: float, seed: int, device: str) -> None:
    """Pre-train, fine-tune for retrieval and captions, and try the result on 356 emoji it has not seen.

    15 minutes on 2 CPU cores. The captions' baseline copies the caption of the nearest training picture. These are
    drawings: the figures say nothing about photographs.
    """
    # Imported here: `blip-fast --help` must not wait for torch.
    from rich.console import Console

    from blip_fast.data.emoji.build import build_emoji
    from blip_fast.tasks.train_demo import Plan, run_train_demo

    started = time.perf_counter()
    try:
        if not data.exists():
            build_emoji(data, debs)
        results = run_train_demo(data, output, Plan().shortened(share), seed, device)
    except (OSError, RuntimeError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    console = Console()
    console.print(retrieval_table(results), caption_table(results))
    console.print(f"{time.perf_counter() - started:.0f} s, seed {seed}: {output / 'results.json'}", highlight=False)


def retrieval_table(results: dict[str, Any]) -> Table:
    """Recalls of both directions."""
    from rich.table import Table

    table = Table("held-out retrieval", "R@1 %", "R@5 %", "R@10 %")
    for name, prefix in (("text of a picture", "txt"), ("picture of a text", "img")):
        table.add_row(name, *(f"{results['retrieval'][f'{prefix}_r{k}']:.1f}" for k in (1, 5, 10)))
    return table


def caption_table(results: dict[str, Any]) -> Table:
    """Captions of the model beside the baseline's."""
    from rich.table import Table

    table = Table("held-out captions", "exact %", "CIDEr %")
    for name, method in (("model", "model"), ("nearest training picture's", "nearest_picture")):
        scores = results["captions"][method]
        table.add_row(name, f"{scores['exact']:.1f}", f"{scores['CIDEr']:.0f}")
    return table
