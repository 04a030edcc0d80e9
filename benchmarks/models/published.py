"""The reference path against a checkout of the published code (`--published PATH`): a pre-training step, same weights.

The reference is the baseline of the other benchmarks; here it is what is judged. It must not be slower than what it stands for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch

from blip_fast import reference
from blip_fast.config import BlipConfig

from ..job import Aim, Case, Setting, Variant
from ..peers.published import PublishedPretrain
from ..weights import Weights
from .counts import pretraining_flops
from .pretrain_step import RECIPE, TOLERANCE, Step, step_inputs

PLACE = 90
NAME = "published code"
BATCH = 4
SHARE = 0.95  # within 5 % of its speed, or faster


def cases(setting: Setting) -> Iterable[Case]:
    """Two layers of the text transformer; with ``--full`` the whole model. None without a checkout."""
    if setting.published is not None:
        config = BlipConfig.base(hidden_dropout=0.0, attention_dropout=0.0)
        yield _case("2 text layers", dataclasses.replace(config, text_layers=2), setting)
        if not setting.quick:
            yield _case("BLIP-base", config, setting)


def _case(name: str, config: BlipConfig, setting: Setting) -> Case:
    assert setting.published is not None  # the caller looked
    torch.manual_seed(0)
    ours = reference.BlipPretrain(config).to(setting.device).train()
    published = PublishedPretrain(setting.published, ours).train()
    weights = Weights(ours)
    trained = [parameter for parameter in ours.parameters() if parameter.requires_grad]

    def variant(name: str, model: torch.nn.Module, **options: str) -> Variant:
        step = Step(model, torch.optim.AdamW(trained, **RECIPE), half=False)
        weigh = dataclasses.replace(step, drop_gradients=False)
        return Variant(name, step, context=weights.restored, weigh=weigh, **options)  # type: ignore[arg-type]

    return Case(
        name=f"{name}, B={BATCH}",
        inputs=lambda seed: step_inputs(config, BATCH, seed, setting.device),
        variants=[variant(NAME, published, role="baseline"), variant("reference", ours, role="ours")],
        tolerance=TOLERANCE["cpu"],
        flops=sum(pretraining_flops(reference.BlipPretrain, config, BATCH).values()),
        aims=[Aim(SHARE, over=NAME), Aim(SHARE, over=NAME, of="memory")],
        items=(BATCH, "pairs"),
        input_sets=2,
    )
