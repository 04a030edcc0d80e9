"""``blip-fast capfilt``: bootstrap a noisy web set with a captioner and a filter, and look at the result."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from blip_fast.cli.options import NumberRange

if TYPE_CHECKING:
    from rich.console import Console

    from blip_fast.capfilt.settings import CapFiltSettings

FOLDER = click.Path(file_okay=False, path_type=Path)
REQUIRED = ("images", "captioner", "filter", "output")


@click.group(name="capfilt", invoke_without_command=True)
@click.option("--images", multiple=True, help="JSON list of {image, caption}, or shards: a .tar, a folder or a pattern such as "
              "'web-{000..127}.tar'. May be given several times.")  # fmt: skip
@click.option("--image-root", type=FOLDER, help="Folder that paths in lists are relative to and stay below; by default each "
              "list's own.")  # fmt: skip
@click.option("--captioner", help="Checkpoint that writes captions: path, published name or Hugging Face id.")
@click.option("--filter", "filter", help="Checkpoint that judges texts (ITC + ITM).")
@click.option("--output", type=FOLDER, help="Folder for everything that is written. A run that was stopped goes on.")
@click.option("--human", multiple=True, help="JSON list of clean pairs that go into the set as they are.")
@click.option("--human-root", type=FOLDER, help="As --image-root, for --human.")
@click.option("--threshold", type=NumberRange(0, 1), help="Keep texts that match with this probability or more "
              "(0.5).")  # fmt: skip
@click.option("--keep-fraction", type=NumberRange(0, 1, min_open=True), help="Keep this share of all texts instead.")
@click.option(
    "--num-captions", type=click.IntRange(1), default=1, show_default=True, help="Synthetic captions per picture."
)
@click.option(
    "--top-p",
    type=NumberRange(0, 1, min_open=True),
    default=0.9,
    show_default=True,
    help="Nucleus of the sampling.",
)
@click.option(
    "--max-length",
    type=click.IntRange(2),
    default=20,
    show_default=True,
    help="Most tokens of a caption, prompt included.",
)
@click.option(
    "--min-length",
    type=click.IntRange(0),
    default=5,
    show_default=True,
    help="Fewest tokens of a caption, prompt included.",
)
@click.option("--prompt", default="a picture of ", help="What captions start with in the captioner's training.  "
              "[default: 'a picture of ']")  # fmt: skip
@click.option(
    "--itc-threshold", type=NumberRange(-1, 1), help="Drop texts of a lower cosine without a look by the ITM head."
)
@click.option(
    "--form", type=click.Choice(["list", "shards"]), help="Form of the set.  [default: shards for shards, else list]"
)
@click.option("--runner", type=click.Choice(["local", "ray"]), default="local", show_default=True,
              help="This process (or those of torchrun), or a Ray cluster.")  # fmt: skip
@click.option("--ray-workers", type=click.IntRange(1), default=1, show_default=True, help="Processes on the cluster.")
@click.option("--device", default="cpu", show_default=True, help="torch device, such as cpu or cuda.")
@click.option("--bfloat16", is_flag=True, help="Compute in bfloat16 where it is safe.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Pictures per batch.")
@click.option(
    "--unit-size", type=click.IntRange(1), default=1000, show_default=True, help="Entries of a list per unit of work."
)
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Threads that decode pictures.")
@click.option("--seed", type=click.IntRange(0), default=42, show_default=True, help="Seed of all captions.")
@click.pass_context
def command(context: click.Context, **options: Any) -> None:
    """Caption web pictures, filter web and synthetic texts, and write the bootstrapped set (BLIP, section 3.3).

    Give --images, --captioner, --filter and --output, or one of the commands below.
    """
    if context.invoked_subcommand is not None:
        return
    missing = [f"--{name}" for name in REQUIRED if not options[name]]
    if missing:
        raise click.UsageError(f"missing {', '.join(missing)}; see 'blip-fast capfilt --help'", context)
    from rich.console import Console

    run(settings_of(options), options["runner"], options["ray_workers"], Console())


@command.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--image-root", type=FOLDER, help="Where the pictures are now, if they have been moved.")
def report(folder: Path, image_root: Path | None) -> None:
    """Write FOLDER/report.html about the run in FOLDER."""
    from blip_fast.checkpoints.files import write_text
    from blip_fast.report.capfilt import capfilt_page

    try:
        page = capfilt_page(folder, image_root)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    # Texts and names of strangers may hold what is no Unicode.
    write_text(folder / "report.html", page, errors="replace")
    click.echo(folder / "report.html")


@command.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--output",
    type=FOLDER,
    default=Path("build/capfilt-demo"),
    show_default=True,
    help="Folder for models and results.",
)
@click.option(
    "--seeds",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Runs; each divides the pictures anew.",
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="Of each pre-training.",
)
@click.option(
    "--finetune-steps", type=click.IntRange(1), default=200, show_default=True, help="Of captioner and of filter."
)
def demo(data: Path, output: Path, seeds: int, steps: int, finetune_steps: int) -> None:
    """Try the claim of the paper's Table 1 on the drawings in DATA.

    DATA holds train.json, train_web.json and test.json. A run that was stopped goes on.
    """
    from rich.console import Console

    from blip_fast.checkpoints.files import write_text
    from blip_fast.report.capfilt_demo import capfilt_demo_page, result_table
    from blip_fast.tasks.capfilt_demo import CapFiltDemoSettings, run_capfilt_demo

    console = Console()
    settings = CapFiltDemoSettings(data, output, steps, finetune_steps)
    try:
        result = run_capfilt_demo(settings, seeds, lambda line: console.print(line, highlight=False))
    except (ValueError, FileNotFoundError) as error:
        raise click.ClickException(str(error)) from error
    write_text(output / "report.html", capfilt_demo_page(result))
    console.print(result_table(result))
    console.print(f"The page to look at: {output / 'report.html'}", highlight=False, markup=False, soft_wrap=True)


def settings_of(options: dict[str, Any]) -> CapFiltSettings:
    """The settings that options of the command line ask for."""
    from pydantic import ValidationError

    from blip_fast.capfilt.settings import CapFiltSettings, ScoreSettings, SelectSettings
    from blip_fast.capfilt.units import SHARD_SUFFIXES, expand

    def chosen(model: type) -> dict[str, Any]:
        fields = cast(Any, model).model_fields
        return {name: options[name] for name in fields if options.get(name) is not None}

    try:
        from_shards = any(path.name.endswith(SHARD_SUFFIXES) for source in options["images"] for path in expand(source))
    except (FileNotFoundError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    options = options | {"form": options["form"] or ("shards" if from_shards else "list")}
    try:
        score, select = ScoreSettings(**chosen(ScoreSettings)), SelectSettings(**chosen(SelectSettings))
        return CapFiltSettings(**chosen(CapFiltSettings), score=score, select=select)
    except ValidationError as error:
        raise click.UsageError("; ".join(map(_reason, error.errors()))) from error


def _reason(problem: Mapping[str, Any]) -> str:
    if problem["type"] == "value_error":  # a sentence of our own
        return str(problem["ctx"]["error"])
    option = "-".join(map(str, problem["loc"])).replace("_", "-")
    return f"--{option} {problem['input']}: {problem['msg'][:1].lower()}{problem['msg'][1:]}"


def run(settings: CapFiltSettings, runner: Any, ray_workers: int, console: Console) -> None:
    """Do it, with a line per unit, and print what came out."""
    from blip_fast.capfilt.runner import run_capfilt

    last = time.perf_counter()

    def on_unit(unit: Any, counts: dict[str, Any]) -> None:
        nonlocal last
        samples, (began, last) = counts["samples"], (last, time.perf_counter())
        rate = samples["in"] / (last - began)
        line = f"unit {unit.name}: {samples['in']} samples, {samples['scored']} scored, {rate:.1f} samples/s"
        console.print(line, highlight=False)

    try:
        manifest = run_capfilt(settings, runner, ray_workers, on_unit=on_unit)
    except (ValueError, OSError, ImportError) as error:
        raise click.ClickException(str(error)) from error
    if manifest is None:
        console.print("This process is done; others are still at work.", highlight=False)
        return
    console.print(summary(manifest), highlight=False)
    hint = f"In {settings.output}. For pictures: blip-fast capfilt report {shlex.quote(str(settings.output))}"
    console.print(hint, highlight=False, markup=False, soft_wrap=True)  # to be copied as it is


def summary(manifest: dict[str, Any]) -> str:
    """The counts of a manifest in words."""
    samples, human = manifest["samples"], manifest["human"]
    rejected = "".join(f", {count} {reason}" for reason, count in samples["rejected"].items())
    lines = [f"{samples['in']:,} samples: {samples['scored']:,} scored{rejected}"]
    for kind in ("web", "synthetic"):
        counts = manifest[kind]
        dropped = "".join(f", {count:,} {reason}" for reason, count in counts["dropped"].items())
        lines.append(f"{counts['in']:,} {kind} texts: {counts['kept']:,} kept{dropped}")
    if human["kept"] or human["rejected"]:
        dropped = "".join(f", {count:,} {reason}" for reason, count in human["rejected"].items())
        lines.append(f"human pairs: {human['kept']:,} kept{dropped}")
    lines.append(f"{manifest['pairs']:,} pairs, threshold {manifest['threshold']:.4g}")
    return "\n".join(lines)
