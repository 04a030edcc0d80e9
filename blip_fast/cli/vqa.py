"""`blip-fast vqa`: answers to questions about an image, as JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from blip_fast.cli.options import PRECISIONS, load_chosen, model_options, one_sentence_errors

if TYPE_CHECKING:
    from blip_fast.inference.checkpoint import Precision


@click.command()
@click.argument("image")
@click.argument("questions", nargs=-1, required=True)
@model_options(PRECISIONS)
@click.option("--allow-remote", is_flag=True, help="Fetch IMAGE if it is an http or https address.")
@click.option(
    "--candidates",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Choose among the answers of a file, one a line or a JSON list, instead of writing one.",
)
@click.option("--beams", type=click.IntRange(min=1), default=3, show_default=True, help="Beam width; 1 is greedy.")
def command(
    image: str,
    questions: tuple[str, ...],
    checkpoint: str | None,
    device: str | None,
    precision: Precision,
    allow_remote: bool,
    candidates: Path | None,
    beams: int,
) -> None:
    """Answer QUESTIONS about IMAGE, one JSON object a line: {"image", "question", "answer", "score"}.

    The score is the mean log-probability of the answer's tokens.
    """
    from blip_fast.inference.answers import answers
    from blip_fast.inference.inputs import Inputs
    from blip_fast.inference.pictures import normalised, one_picture
    from blip_fast.inference.records import RecordFile
    from blip_fast.models import BlipVQA

    with one_sentence_errors():
        wanted, records = Inputs([image], allow_remote=allow_remote), RecordFile(None)
        choices = None if candidates is None else read_candidates(candidates)
        model = load_chosen(BlipVQA, checkpoint, device, precision)
        pixels = normalised(one_picture(wanted, model.config.image_size), model.visual_encoder.cls_token)
        for record in answers(model, pixels, questions, choices, beams):
            records.write([{"image": image} | record])


def read_candidates(path: Path) -> list[str]:
    """Answers of a file: a JSON list of strings, as published answer_list.json is one, or one a line."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors on Windows put a byte order mark in front
    except UnicodeDecodeError as error:
        raise ValueError(f"--candidates {path} is no text in UTF-8") from error
    if text.lstrip().startswith("["):
        try:
            found = json.loads(text)
        except ValueError as error:
            raise ValueError(f"--candidates {path} is no JSON list: {error}") from error
    else:
        found = [line.strip() for line in text.splitlines() if line.strip()]
    if not found or not all(isinstance(answer, str) and answer for answer in found):
        raise ValueError(
            f"--candidates {path} holds no list of answers; expected one a line, or a JSON list of strings"
        )
    return found
