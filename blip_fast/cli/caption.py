"""`blip-fast caption`: captions for any number of images, as JSON lines."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from blip_fast.cli.options import (
    EXIT_WITH_PROBLEMS,
    PRECISIONS,
    NumberRange,
    input_options,
    load_chosen,
    model_options,
    one_sentence_errors,
    standard_input,
    tell,
)

if TYPE_CHECKING:
    from blip_fast.inference.captions import Captioning, CaptionSettings
    from blip_fast.inference.checkpoint import Precision


@click.command()
@click.argument("inputs", nargs=-1, required=True)
@model_options(PRECISIONS)
@input_options
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), help="JSONL file; by default standard output."
)
@click.option("--errors", type=click.Path(dir_okay=False, path_type=Path), help="By default OUTPUT with .errors.jsonl.")
@click.option("--resume", is_flag=True, help="Go on behind the captions that OUTPUT holds.")
@click.option("--beams", type=click.IntRange(min=1), default=3, show_default=True, help="Beam width; 1 is greedy.")
@click.option("--sample", is_flag=True, help="Draw from the nucleus instead of searching.")
@click.option("--top-p", type=NumberRange(0, 1, min_open=True), default=0.9, show_default=True)
@click.option("--prompt", help="What captions begin with; by default 'a picture of '.")
@click.option("--max-length", type=int, help="Tokens at most, prompt included; by default 16 more than the prompt has.")
@click.option("--min-length", type=int, help="Tokens at least, prompt included; by default 1 more than the prompt has.")
@click.option("--scores", is_flag=True, help="Add log-probabilities: per token, and their mean.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the draws.")
@click.option("--quiet", is_flag=True, help="No progress.")
def command(
    inputs: tuple[str, ...],
    checkpoint: str | None,
    device: str | None,
    precision: Precision,
    allow_remote: bool,
    batch_size: int | None,
    workers: int | None,
    output: Path | None,
    errors: Path | None,
    resume: bool,
    quiet: bool,
    **settings: Any,
) -> None:
    """Write a caption for each image of INPUTS, one JSON object a line: {"image": ..., "caption": ...}.

    INPUTS are images, folders (searched in depth), patterns, webdataset shards (.tar), addresses, or "-" for a list of
    these on standard input. An image that cannot be read is a line of the error file, and the run goes on. After any
    interruption --resume continues without repeating or losing an image.

    Exit codes: 0, all images have a caption; 3, some could not be read; 1, the run failed; 2, wrong usage.
    """
    if resume and output is None:
        raise click.UsageError("--resume needs --output: it goes on behind the captions of that file")
    if errors is None and output is not None:
        errors = output.with_name(f"{output.name}.errors.jsonl")
    if errors is not None and output is not None and errors.resolve() == output.resolve():
        raise click.UsageError(f"--errors {errors} is the file of --output, too; expected another")
    # Imported here: `--help` must not wait for torch.
    from rich.console import Console

    from blip_fast.inference.captions import CaptionSettings
    from blip_fast.inference.inputs import Inputs
    from blip_fast.inference.progress import PictureProgress
    from blip_fast.inference.records import ProblemFile, RecordFile
    from blip_fast.inference.run import caption_all

    with one_sentence_errors():
        # What is wrong with inputs and files shows before a model is loaded.
        wanted = Inputs(inputs, standard_input(inputs), allow_remote)
        records = RecordFile(output, resume)
        captioning = load_captioning(checkpoint, device, precision, CaptionSettings(**settings))
        problems = ProblemFile(errors)
        with records, PictureProgress(Console(stderr=True), quiet) as progress:
            caption_all(wanted, captioning, records, problems, progress, batch_size, workers)
    if problems.count:
        tell(f"{problems.count} images could not be read{f': {errors}' if errors else ''}")
        sys.exit(EXIT_WITH_PROBLEMS)


def load_captioning(
    checkpoint: str | None, device: str | None, precision: Precision, settings: CaptionSettings
) -> Captioning:
    """The model, with settings that fit it; what a caller would not expect of them is told."""
    from blip_fast.inference.captions import Captioning
    from blip_fast.models import BlipCaptioner

    model = load_chosen(BlipCaptioner, checkpoint, device, precision)
    captioning = Captioning(model, settings)
    if settings.prompt is None and not captioning.prompt:
        tell("the model's vocabulary lacks the words of the usual prompt: captions are made without it")
    return captioning
