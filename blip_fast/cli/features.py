"""`blip-fast features`: features of images, texts or both, in a safetensors file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from blip_fast.cli.options import (
    EXIT_WITH_PROBLEMS,
    FLOAT_PRECISIONS,
    input_options,
    load_chosen,
    model_options,
    one_sentence_errors,
    standard_input,
    tell,
)

if TYPE_CHECKING:
    from blip_fast.inference.checkpoint import Precision
    from blip_fast.inference.features import FeatureRows


@click.command()
@click.argument("inputs", nargs=-1, required=True)
@model_options(FLOAT_PRECISIONS)
@input_options
@click.option("--kind", type=click.Choice(["image", "text", "multimodal"]), default="image", show_default=True)
@click.option("--projected", is_flag=True, help="One vector each, of length 1, in the space of images and texts.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="safetensors file.")
@click.option("--quiet", is_flag=True, help="No progress.")
def command(
    inputs: tuple[str, ...],
    checkpoint: str | None,
    device: str | None,
    precision: Precision,
    allow_remote: bool,
    batch_size: int | None,
    workers: int | None,
    kind: str,
    projected: bool,
    output: Path,
    quiet: bool,
) -> None:
    """Write features of INPUTS to a safetensors file: one row each, in the tensor that --kind names.

    INPUTS are images, as for `blip-fast caption`; with --kind text the texts themselves, or "-" for one a line of standard
    input; with --kind multimodal files of records {"image", "caption"}, such as `blip-fast caption` writes. The tensor
    "ids" is the bytes of a JSON list of the images or texts. Without --projected a row has the state of every token; those
    of texts end after "lengths" tokens.

    Exit codes: 0, all inputs have features; 3, some could not be read; 1, the run failed; 2, wrong usage.
    """
    from blip_fast.inference.feature_file import write_features
    from blip_fast.inference.features import Extraction, read_pairs
    from blip_fast.inference.inputs import Inputs
    from blip_fast.inference.run import decoding_workers
    from blip_fast.models import BlipFeatureExtractor

    with one_sentence_errors():
        lines = standard_input(inputs)
        pictures = Inputs(inputs, lines, allow_remote) if kind == "image" else None
        pairs = read_pairs(Path(name) for name in inputs) if kind == "multimodal" else []
        model = load_chosen(BlipFeatureExtractor, checkpoint, device, precision)
        if workers is None:
            workers = decoding_workers(pictures or pairs)
        extraction = Extraction(model, projected, batch_size, workers)
        if pictures is not None:
            parts = extraction.images(pictures)
        elif kind == "text":
            parts = extraction.texts([text for name in inputs for text in (lines if name == "-" else [name])])
        else:
            parts = extraction.pairs(pairs, allow_remote)
        progress = Reported(parts, quiet)
        count = write_features(output, kind, progress, {"kind": kind, "projected": str(projected).lower()})
    tell(f"{output}: {count} rows")
    if progress.broken:
        sys.exit(EXIT_WITH_PROBLEMS)


class Reported:
    """Parts on their way to the file: how far they are is shown, and problems are lines of standard error."""

    def __init__(self, parts: Iterator[FeatureRows], quiet: bool) -> None:
        self.parts, self.quiet, self.broken = parts, quiet, 0

    def __iter__(self) -> Iterator[FeatureRows]:
        from rich.console import Console

        from blip_fast.inference.progress import PictureProgress
        from blip_fast.inference.records import ProblemFile

        problems = ProblemFile(None)
        with PictureProgress(Console(stderr=True), self.quiet) as progress:
            for part in self.parts:
                problems.write(part.problems)
                progress.advance(len(part.ids), len(part.problems))
                yield part
        self.broken = problems.count
