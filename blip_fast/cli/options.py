"""Options that several commands have, and how their values are checked."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    import torch

    from blip_fast.checkpoints.pretrained import PretrainedModel
    from blip_fast.inference.checkpoint import Precision

    Model = TypeVar("Model", bound=PretrainedModel)

EXIT_WITH_PROBLEMS = 3  # the run is complete, but for inputs that could not be read
FLOAT_PRECISIONS = ("fp32", "bf16", "fp16")
PRECISIONS = (*FLOAT_PRECISIONS, "int8")

_MODEL_OPTIONS = (
    click.option("--checkpoint", help="File, folder, published name or Hugging Face id; by default the published one."),
    click.option("--device", default=None, help="torch device; by default cuda where there is one, else cpu."),
)
_INPUT_OPTIONS = (
    click.option("--allow-remote", is_flag=True, help="Fetch http and https addresses among the inputs."),
    click.option(
        "--batch-size", type=click.IntRange(min=1), help="Images at a time; by default what fits into memory."
    ),
    click.option(
        "--workers", type=click.IntRange(min=0), help="Processes that decode images; by default by core count."
    ),
)


class NumberRange(click.FloatRange):
    """A range that NaN is outside of, unlike click's: no comparison with it holds."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is no number.", param, ctx)
        return number


def model_options(precisions: Sequence[str]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``--checkpoint``, ``--device`` and ``--precision``, which is one of those given."""
    note = "int8: weights, on a CPU." if "int8" in precisions else None
    precision = click.option("--precision", type=click.Choice(precisions), default="fp32", show_default=True, help=note)
    return lambda command: _with(command, (*_MODEL_OPTIONS, precision))


def input_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--allow-remote``, ``--batch-size`` and ``--workers``."""
    return _with(command, _INPUT_OPTIONS)


def _with(command: Callable[..., Any], options: tuple[Callable[..., Any], ...]) -> Callable[..., Any]:
    for option in reversed(options):
        command = option(command)
    return command


def checked_device(name: str | None) -> torch.device:
    """The torch device of that name, if this machine has it; None is cuda where there is one, else cpu."""
    from blip_fast.training.distributed import Rank, find_device

    try:
        return find_device(name or "auto", Rank())
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--device") from error


def load_chosen(model_class: type[Model], checkpoint: str | None, device: str | None, precision: Precision) -> Model:
    """The model that :func:`model_options` name; a choice that is not the caller's is told."""
    from blip_fast.inference.checkpoint import choose_checkpoint, load_model

    chosen = checked_device(device)
    source, note = choose_checkpoint(model_class.head, checkpoint)
    if note:
        tell(note)
    return load_model(model_class, source, chosen, precision)


@contextlib.contextmanager
def one_sentence_errors() -> Iterator[None]:
    """Within the block, what callers do wrong ends the command with the message alone."""
    from blip_fast.data.pictures import BrokenSampleError

    try:
        yield
    except BrokenPipeError:  # of whoever reads the output: click ends in silence
        raise
    except (ValueError, OSError, BrokenSampleError) as error:
        raise click.ClickException(str(error)) from error


def standard_input(arguments: Sequence[str]) -> list[str]:
    """The lines of standard input if "-" is among the arguments; as file names, which need not be UTF-8."""
    return [os.fsdecode(line.rstrip(b"\r\n")) for line in sys.stdin.buffer] if "-" in arguments else []


def tell(message: str) -> None:
    """Say something to whoever runs the command; standard output is for results."""
    click.echo(message, err=True)
