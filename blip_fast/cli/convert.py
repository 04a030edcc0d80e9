"""`blip-fast convert`: one format of checkpoints into another."""

from __future__ import annotations

from pathlib import Path

import click

from blip_fast import reference
from blip_fast.checkpoints.heads import HEADS
from blip_fast.checkpoints.pretrained import FORMATS, Format, PretrainedModel, read_checkpoint


@click.command()
@click.argument("source")
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--to", "target_format", type=click.Choice(FORMATS), required=True, help="Format of TARGET.")
@click.option("--head", type=click.Choice(list(HEADS)), help="Part to take out; by default what SOURCE was made for.")
def command(source: str, target: Path, target_format: Format, head: str | None) -> None:
    """Convert the checkpoint SOURCE into TARGET.

    SOURCE is a published file or its name, an address, a folder, or a Hugging Face id. TARGET is a folder; with
    `--to published` a name that ends in .pth is the file itself.
    """
    try:
        model = _load(source, head)
        model.save_pretrained(target, target_format)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{target}: {type(model).__name__}, {sum(p.numel() for p in model.parameters()):,} parameters")
    report = model.load_report
    if report is not None and report.unexpected:
        click.echo(f"left out of {source}: {len(report.unexpected)} tensors, '{report.unexpected[0]}' first")


def _load(source: str, head: str | None) -> PretrainedModel:
    """The model that the checkpoint holds completely."""
    head = head or read_checkpoint(source).head
    if head is None:
        raise ValueError(f"{source} does not tell which head it is for; name it with --head")
    model_class: type[PretrainedModel] = getattr(reference, HEADS[head].class_name)
    model = model_class.from_pretrained(source)
    if model.load_report is not None and model.load_report.initial:
        initial = model.load_report.initial
        raise ValueError(f"{source} lacks {len(initial)} tensors of {HEADS[head].class_name}, '{initial[0]}' first")
    return model
