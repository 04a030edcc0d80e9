"""`blip-fast report`: a training run as one page."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(name="report")
@click.argument("output_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="[default: report.html in OUTPUT_DIR]")
def command(output_dir: Path, output: Path | None) -> None:
    """Write a page about the training run in OUTPUT_DIR: curves, results, settings, environment, sample predictions.

    The page is one HTML file that needs nothing else. It can be written while the run goes on.
    """
    # Imported here: `blip-fast --help` must not wait for matplotlib.
    from blip_fast.checkpoints.files import write_text
    from blip_fast.report.training import training_page

    try:
        page = training_page(output_dir)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    target = output or output_dir / "report.html"
    write_text(target, page)
    click.echo(str(target))
