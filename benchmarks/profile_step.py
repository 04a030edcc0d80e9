"""Where a BLIP-base pre-training step of the published model spends its time, and what fusing pointwise work could win.

    python -m blip_fast.benchmarks.profile_step --output benchmarks/results/profile_cpu.md

A fused operation can at best make its group of operations free, so a group's share bounds what fusing it can win. For a GPU
in bf16 autocast, where the products are fast and memory traffic weighs more, the second table counts the bytes instead.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from torch.profiler import ProfilerActivity, profile

from blip_fast.config import BlipConfig
from blip_fast.reference import BlipPretrain

from .environment import machine

CAPTION_LENGTHS = (13, 10, 16, 13)  # of 30; their mean is 13, as in the web data
PADDED = 30
WORTH = 0.02

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "mkldnn_convolution", "convolution_backward", "cudnn_convolution")
DROPOUT = ("bernoulli_", "div_", "mul", "native_dropout", "native_dropout_backward")
NORMS = ("native_layer_norm", "native_layer_norm_backward")
OPTIMIZER = ("sqrt", "addcdiv_", "addcmul_", "lerp_", "_fused_adamw_")


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Bytes per element on a GPU, in bf16 autocast with fp32 residuals and statistics: unfused and fused."""

    name: str
    elements: float  # per step, forward and backward
    elements_m: float  # per step in the momentum encoders, forward only
    forward: tuple[int, int]
    backward: tuple[int, int]

    def bytes_won(self) -> float:
        """What fusing saves in a step."""
        forward, backward = (unfused - fused for unfused, fused in (self.forward, self.backward))
        return (self.elements + self.elements_m) * forward + self.elements * backward


def group_of(name: str, shapes: Sequence[Any], config: BlipConfig) -> str:
    """The group of an operation, told by its name and the shape of its first argument."""
    name, shape = name.removeprefix("aten::"), tuple(shapes[0]) if shapes and shapes[0] else ()
    hidden = len(shape) == 3 and shape[-1] in (config.text_width, config.vit_width)
    scores = len(shape) == 4 and shape[1] == config.text_heads
    if name in PRODUCTS:
        return "matrix products"
    if name in NORMS or (hidden and name in (*DROPOUT, "add")):
        return "dropout + residual sum + LayerNorm"
    if "gelu" in name or (name == "sum" and len(shape) == 2 and shape[-1] == config.text_intermediate):
        return "GELU and its bias's gradient"
    if "embedding" in name.lower():
        return "embedding of tokens"
    if "softmax" in name and shape and shape[-1] == config.vocab_size:
        return "language-modelling loss"
    if "softmax" in name or (scores and name in (*DROPOUT, "add", "sub")):
        return "attention scores: softmax, dropout, masks"
    if name in ("copy_", "cat", "clone"):
        return "copies (heads, queues, momentum)"
    if name in OPTIMIZER or (len(shape) == 2 and name in ("mul_", "add", "add_", "div", "fill_", "mul")):
        return "optimizer, momentum, gradient sums"
    return "everything else"


def gpu_traffic(config: BlipConfig, batch: int) -> list[Traffic]:
    """The candidates' traffic for a batch of packed captions."""
    image = batch * ((config.image_size // config.vit_patch) ** 2 + 1) * config.vit_width
    text = batch * sum(CAPTION_LENGTHS) / len(CAPTION_LENGTHS) * config.text_width
    # Texts run alone (online, momentum), then as positives, two kinds of negatives and for LM: three norms a layer.
    norms, norms_m = 2 * config.vit_depth * image + 14 * config.text_layers * text, 2 * config.vit_depth * image
    gelus = config.vit_depth * image * config.vit_mlp_ratio + 5 * config.text_layers * text * 4
    return [
        # sum: 6 read, 4 written; norm: 4, 4; cast of its result: 4, 2. Backward: casts 6 and 6, norm 12 and 8, sum 12.
        Traffic("dropout + residual sum + LayerNorm", norms, norms_m, (24, 12), (44, 16)),
        # The bias is added by the product. Backward: 6, and the bias's gradient reads 2 again.
        Traffic("bias + GELU", gelus, gelus / 2, (4, 4), (8, 6)),
        Traffic("embedding + LayerNorm", 5 * text, text, (20, 8), (32, 20)),
    ]


def training_step(config: BlipConfig) -> Callable[[], None]:
    """One step, as published: forward, backward, AdamW."""
    torch.manual_seed(0)
    model = BlipPretrain(config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.05)
    batch = len(CAPTION_LENGTHS)
    image = torch.randn(batch, 3, config.image_size, config.image_size)
    mask = (torch.arange(PADDED) < torch.tensor(CAPTION_LENGTHS)[:, None]).long()
    ids = torch.randint(1000, 20000, (batch, PADDED)) * mask

    def step() -> None:
        optimizer.zero_grad()
        model(image, ids, mask, alpha=0.4).loss.backward()
        optimizer.step()

    return step


def measure(config: BlipConfig, steps: int) -> dict[str, float]:
    """Seconds per step of each group."""
    step = training_step(config)
    seconds: dict[str, float] = defaultdict(float)
    step()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        for _ in range(steps):
            step()
    for event in profiler.events():
        seconds[group_of(event.name, event.input_shapes, config)] += event.self_cpu_time_total / 1e6 / steps
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def report(seconds: dict[str, float], config: BlipConfig, threads: int) -> str:
    """The two tables in Markdown."""
    total, facts = sum(seconds.values()), machine(torch.device("cpu"))
    lines = [
        "# Profile of a pre-training step of the published model (BLIP-base, 224 px)",
        "",
        f"Written by `python -m blip_fast.benchmarks.profile_step`. {facts['cpu']}, {threads} thread(s), "
        f"torch {torch.__version__},",
        f"fp32, batch {len(CAPTION_LENGTHS)}, captions of 13 tokens padded to {PADDED}. A step takes {total:.2f} s.",
        "",
        "| group | s per step | share |",
        "|---|---|---|",
        *(f"| {name} | {value:.3f} | {value / total:.1%} |" for name, value in seconds.items()),
        "",
        "## What fusing would win on a Hopper GPU in bf16 (computed, not measured)",
        "",
        "Bytes saved per step at batch 75, over 3.0 TB/s, as a share of a step of 37.5 ms (2,000 pairs/s):",
        "",
        "| candidate | saved | share |",
        "|---|---|---|",
    ]
    for traffic in gpu_traffic(config, 75):
        share = traffic.bytes_won() / 3.0e12 / 37.5e-3
        lines.append(f"| {traffic.name} | {traffic.bytes_won() / 1e9:.2f} GB | {share:.1%} |")
    return "\n".join([*lines, "", f"Worth an operation of its own: {WORTH:.0%} or more in one of the tables.", ""])


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--threads", default=1, help="Of torch. One thread gives steady shares on a machine that is shared.")
@click.option("--steps", default=2, help="Steps that are profiled, after one that is not.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the report here (Markdown).")
def main(threads: int, steps: int, output: Path | None) -> None:
    """Profile training steps on the CPU and report the share of each group of operations."""
    torch.set_num_threads(threads)
    config = BlipConfig.base()
    text = report(measure(config, steps), config, threads)
    if output is None:
        click.echo(text)
        return
    beside = output.with_name(output.name + ".new")
    beside.write_text(text)
    beside.replace(output)


if __name__ == "__main__":
    main(prog_name="python -m blip_fast.benchmarks.profile_step")
