"""``blip-fast demo``: pre-train a small BLIP on bundled drawings and look at what it learned."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from blip_fast.cli.options import checked_device

if TYPE_CHECKING:
    from blip_fast.tasks.demo import DemoResult


@click.command(name="demo")
@click.option("--steps", type=click.IntRange(min=1), default=None, help="Training steps; fewer are quicker and worse.")
@click.option("--device", default="cpu", show_default=True, help="torch device, such as cpu or cuda.")
@click.option("--backend", default=None, help="Backend of the operations; the fastest available one if not given.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of all random numbers.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="Folder for report.html, metrics.json and the model.",
)
def command(steps: int | None, device: str, backend: str | None, seed: int, output: Path) -> None:
    """Pre-train a small BLIP on 182 drawings in about two minutes, then try it on 26 that it has not seen."""
    # Imported here: `blip-fast --help` must not wait for torch.
    from rich.console import Console

    from blip_fast.tasks.demo import BATCH_SIZE, DEFAULT_STEPS, run_demo
    from blip_fast.training.environment import environment
    from blip_fast.training.progress import TrainingProgress

    console = Console()
    chosen = checked_device(device)
    total = steps or DEFAULT_STEPS
    output.mkdir(parents=True, exist_ok=True)
    console.print("Pre-training a small BLIP (ITC + ITM + LM) on 182 drawings; 26 others are kept for the test.")
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        enter_backend(stack, backend)
        progress = stack.enter_context(TrainingProgress(console, total, BATCH_SIZE, log_every=max(total // 10, 1)))
        result = run_demo(total, seed, chosen, progress.show)
    write_results(result, output, environment(chosen, backend))
    console.print(summary(result), highlight=False)
    console.print(f"{time.perf_counter() - started:.0f} s. The page to look at: [bold]{output / 'report.html'}[/bold]")


def enter_backend(stack: contextlib.ExitStack, name: str | None) -> None:
    """Let the operations use backend ``name`` until ``stack`` closes; None leaves the choice to each operation."""
    import blip_fast

    try:
        if name is not None:
            stack.enter_context(blip_fast.backend(name))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--backend") from error


def write_results(result: DemoResult, output: Path, machine: dict[str, str]) -> None:
    """Write the model, metrics.json and report.html to ``output``."""
    from blip_fast.checkpoints.files import write_json, write_text
    from blip_fast.report.demo import demo_page

    result.model.save_pretrained(output / "model", tokenizer=result.tokenizer)
    write_json(output / "metrics.json", {**result.metrics(), "environment": machine})
    write_text(output / "report.html", demo_page(result, machine))


def summary(result: DemoResult) -> str:
    """The numbers and some captions, for the terminal."""
    metrics = result.metrics()
    found, chance = metrics["retrieval"]["reranked"], metrics["retrieval"]["chance"]
    matching = metrics["matching"]
    lines = [
        "",
        f"On {len(result.exact)} held-out drawings:",
        f"  caption for a picture   R@1 {found['txt_r1']:4.0%}   R@5 {found['txt_r5']:4.0%}",
        f"  picture for a caption   R@1 {found['img_r1']:4.0%}   R@5 {found['img_r5']:4.0%}",
        f"  by chance               R@1 {chance['r1']:4.0%}   R@5 {chance['r5']:4.0%}",
        f"  captions exactly right  {metrics['captions']['exact']:.0%}",
        f"  match of true pairs     {matching['true_pairs_mean']:.2f} on average, "
        f"{matching['true_pairs_accepted']:.0%} over 0.5",
        f"  match of false pairs    {matching['false_pairs_mean']:.2f} on average, "
        f"{1 - matching['false_pairs_rejected']:.1%} over 0.5",
        "",
    ]
    for truth, caption, exact in list(zip(result.test_pairs.captions, result.captions, result.exact, strict=True))[::5]:
        lines.append(f"  {truth}: {'the same' if exact else caption}")
    return "\n".join(lines)
