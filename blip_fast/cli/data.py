"""`blip-fast data`: makes data sets."""

from __future__ import annotations

from pathlib import Path

import click


@click.group(name="data")
def command() -> None:
    """Make data sets to train on."""


@command.command()
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("emoji"),
    show_default=True,
    help="New folder for pictures and annotation files.",
)
@click.option(
    "--debs",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of the Debian packages fonts-noto-color-emoji, unicode-data and unicode-cldr-core (.deb).  "
    "[default: apt-get download fetches them]",
)
def emoji(output: Path, debs: Path | None) -> None:
    """Draw some 3,300 emoji with their names as captions: 2,743 to train on, 183 and 356 to validate and test."""
    from rich.console import Console
    from rich.progress import track

    from blip_fast.data.emoji.build import build_emoji

    console = Console(stderr=True)
    try:
        counts = build_emoji(output, debs, lambda wanted: track(wanted, "Drawing", console=console))
    except (OSError, RuntimeError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{output}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items()) + " pairs")
