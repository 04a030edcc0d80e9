"""What a BLIP-base pre-training step costs, counted and not timed: FLOPs, and how often the host waits for the device.

    python -m blip_fast.benchmarks.models.counts --output benchmarks/results/counts.json

FLOPs are those of forward and backward of four captions as long as COCO's. Reads of the published model are its draws of
negatives: two per pair.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from blip_fast import models, reference
from blip_fast.checkpoints.files import write_json
from blip_fast.config import BlipConfig
from blip_fast.optim import AdamWMomentum
from blip_fast.training.costs import flop_counter

from ..captions import PADDED_LENGTH, caption_lengths, padded_texts

BATCH = 4
ALPHA = 0.4
FLOPS_AIM = 0.645
READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::masked_select", "aten::item"}


class CountReads(TorchDispatchMode):
    """Counts the operations that make the host wait for a value, or for a shape that depends on one."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        masked = func._schema.name.startswith("aten::index") and any(
            isinstance(item, torch.Tensor) and item.dtype in (torch.bool, torch.uint8)
            for item in (args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else [])
        )
        if func._schema.name in READS or masked:
            self.found.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def count_flops(call: Callable[[], Any]) -> dict[str, int]:
    """FLOPs of a call, by operation; by the counter's convention only matrix products and attention count."""
    with flop_counter() as counter:
        call()
    return {str(operation): count for operation, count in counter.get_flop_counts()["Global"].items()}


def pretraining_flops(
    model_class: type[reference.BlipPretrain], config: BlipConfig, batch: int, seed: int = 0
) -> dict[str, int]:
    """FLOPs of forward and backward of a pre-training step, by operation."""

    def loss(model: Any, image: Tensor, ids: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
        return model(image, ids, mask, alpha=ALPHA, negatives=(rows.roll(1), rows.roll(-1))).loss

    return training_flops(model_class, config, batch, PADDED_LENGTH, loss, seed)


def training_flops(
    model_class: type[nn.Module],
    config: BlipConfig,
    batch: int,
    padded_length: int,
    loss: Callable[..., Tensor],
    seed: int = 0,
) -> dict[str, int]:
    """FLOPs of ``loss(model, image, ids, mask, rows)`` and its backward, by operation, for captions as long as COCO's.

    Nothing is computed: weights, images and states have a shape and no memory. Texts and negatives are real, so that lengths
    are known as they are in training.
    """
    with torch.device("meta"):
        model = model_class(config).train()
    with FakeTensorMode(allow_non_fake_inputs=True):  # outside, what has only real inputs is really computed
        empty = {name: torch.empty(entry.shape, dtype=entry.dtype) for name, entry in model.state_dict().items()}
        model.load_state_dict(empty, assign=True)
        image = torch.empty(batch, 3, config.image_size, config.image_size)
    ids, mask = padded_texts(caption_lengths(batch, seed), padded_length, config, seed)
    return count_flops(lambda: loss(model, image, ids, mask, torch.arange(batch)).backward())


def fused_reads(config: BlipConfig, batch: int) -> list[str]:
    """Reads of the device in a whole fused step, negatives drawn: counted on device "meta", which has no values to read."""
    with torch.device("meta"):
        model = models.BlipPretrain(config).train()
        image = torch.empty(batch, 3, config.image_size, config.image_size)
        ids, mask = (torch.empty(batch, PADDED_LENGTH, dtype=torch.int64) for _ in range(2))
    model.momentum_in_forward = False
    optimizer = AdamWMomentum(model.parameters(), model.momentum_pairs(), config.momentum)
    with CountReads() as reads:
        model(image, ids, mask, alpha=ALPHA).loss.backward()
        optimizer.step()
    return reads.found


def published_reads(config: BlipConfig, batch: int) -> list[str]:
    """Reads in forward and backward of the published model, which needs values: use a small configuration."""
    torch.manual_seed(0)
    model = reference.BlipPretrain(config).train()
    ids, mask = padded_texts(caption_lengths(batch, 0), PADDED_LENGTH, config, 0)
    image = torch.randn(batch, 3, config.image_size, config.image_size)
    with CountReads() as reads:
        model(image, ids, mask, alpha=ALPHA).loss.backward()
    return reads.found


@click.command()
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the counts here, as JSON.")
def main(output: Path | None) -> None:
    """Count, print, and exit with 1 where an aim is missed."""
    config = BlipConfig.base()
    flops = {
        name: pretraining_flops(model_class, config, BATCH)
        for name, model_class in (("reference", reference.BlipPretrain), ("blip_fast", models.BlipPretrain))
    }
    totals = {name: sum(counts.values()) / BATCH for name, counts in flops.items()}
    ratio = totals["blip_fast"] / totals["reference"]
    tiny = BlipConfig.tiny()
    reads = {"reference": len(published_reads(tiny, BATCH)), "blip_fast": len(fused_reads(tiny, BATCH))}
    for name in flops:
        print(f"{name:10} {totals[name] / 1e9:7.2f} GFLOP a pair, {reads[name]} reads of the device a step")
        for operation, count in sorted(flops[name].items(), key=lambda item: -item[1]):
            print(f"    {operation:64} {count / BATCH / 1e9:8.3f}")
    print(f"FLOPs, blip_fast / reference: {ratio:.4f} (aim: at most {FLOPS_AIM})")
    if output is not None:
        per_pair = {name: {op: count / BATCH for op, count in counts.items()} for name, counts in flops.items()}
        document = {"batch": BATCH, "flops_per_pair": per_pair, "ratio": ratio, "reads_per_step": reads}
        write_json(output, document)
    raise SystemExit(ratio > FLOPS_AIM or reads["blip_fast"] > 0)


if __name__ == "__main__":
    main()
