"""AdamW step and momentum copies of BLIP against torch's fused AdamW followed by the published loop over copies.

In one pass: parameter, two averages and copy are read and written, the gradient is read: 36 bytes per fp32 parameter, 28
where there is no copy. In two, the optimizer moves 28 and the copies 12, more with temporaries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from blip_fast.config import BlipConfig
from blip_fast.ops import adamw_momentum_step_, momentum_update_
from blip_fast.reference import BlipPretrain

from ..backends import backend_variants
from ..job import Aim, Case, Setting, Variant
from ..peers.packages import why_apex_is_absent

PLACE = 45
MOMENTUM = 0.995
STEPS = 1000  # that were taken before
NUMBERS: dict[str, Any] = {"lr": 3e-4, "eps": 1e-8, "weight_decay": 0.05}
BASELINE = "torch fused AdamW, published loop"
AIMS = {"cpu": (Aim(1.5, over=BASELINE),), "cuda": (Aim(0.85), Aim(1.5, over=BASELINE))}
Tensors = list[Tensor]
Copies = list[Tensor | None]
Inputs = tuple[Tensors, Tensors, Tensors, Tensors, Tensors, Copies, Copies]


def cases(setting: Setting) -> Iterable[Case]:
    """The image encoder of BLIP-base; with ``--full`` or on a GPU all of BLIP-base (on a CPU it takes 16 GB)."""
    if setting.device.type == "cpu":
        yield _case("BLIP-base image encoder, fp32", "visual_encoder.", setting)
    if setting.device.type == "cuda" or not setting.quick:
        yield _case("BLIP-base, fp32", "", setting)


def _case(name: str, prefix: str, setting: Setting) -> Case:
    with torch.device("meta"):
        model = BlipPretrain(BlipConfig.base())
    followed = {param for _, param in model.momentum_pairs()}
    shapes = [
        (param.shape, param in followed)
        for key, param in model.named_parameters()
        if param.requires_grad and key.startswith(prefix)
    ]

    def inputs(seed: int) -> Inputs:
        generator = torch.Generator(setting.device).manual_seed(seed)

        def normal(scale: float) -> Tensors:
            draws = (torch.randn(shape, generator=generator, device=setting.device) for shape, _ in shapes)
            return [tensor.mul_(scale) for tensor in draws]

        copies = [copy if has_copy else None for copy, (_, has_copy) in zip(normal(1.0), shapes, strict=True)]
        steps = [torch.tensor(float(STEPS), device=setting.device) for _ in shapes]
        squares = [tensor.square_() for tensor in normal(0.1)]
        own = [None if copy is None else copy.clone() for copy in copies]
        return normal(1.0), normal(0.1), normal(0.1), squares, steps, copies, own

    return Case(
        name=name,
        inputs=inputs,
        variants=[
            Variant(BASELINE, after_adamw(published_loop), role="baseline"),
            Variant("torch fused AdamW, foreach lerp", after_adamw(foreach_lerp), cuda_graph=True),
            Variant("torch fused AdamW, momentum_update_", after_adamw(in_one_launch), cuda_graph=True),
            Variant(
                "apex FusedAdam, foreach lerp",
                after_adamw(foreach_lerp, apex_adamw),
                unavailable=why_apex_is_absent("amp_C", setting.device),
            ),
            *backend_variants("adamw_momentum_step_", ours, setting.device, cuda_graph=True),
        ],
        tolerance=1e-6,
        bytes=sum(shape.numel() * (36 if has_copy else 28) for shape, has_copy in shapes),
        aims=AIMS[setting.device.type],
    )


def torch_adamw(params: Tensors, grads: Tensors, avgs: Tensors, squares: Tensors, steps: Tensors) -> None:
    """A step of `torch.optim.AdamW(fused=True)`."""
    torch._foreach_add_(steps, 1)
    options = {"beta1": 0.9, "beta2": 0.999, "amsgrad": False, "maximize": False} | NUMBERS
    torch._fused_adamw_(params, grads, avgs, squares, [], steps, **options)


def apex_adamw(params: Tensors, grads: Tensors, avgs: Tensors, squares: Tensors, steps: Tensors) -> None:
    """A step of apex's FusedAdam, which counts steps on the host: always the one that follows on the inputs."""
    import amp_C
    from apex.multi_tensor_apply import multi_tensor_applier

    overflow = torch.zeros(1, dtype=torch.int32, device=params[0].device)
    lists, numbers = [grads, params, avgs, squares], (NUMBERS["lr"], 0.9, 0.999, NUMBERS["eps"])
    multi_tensor_applier(amp_C.multi_tensor_adam, overflow, lists, *numbers, STEPS + 1, 1, 1, NUMBERS["weight_decay"])


def after_adamw(
    move_copies: Callable[[Tensors, Tensors], None], adamw: Callable[..., None] = torch_adamw
) -> Callable[..., list[Tensors]]:
    """A step of AdamW, then the copies: the published loop's own, since it gives them new memory."""

    def run(
        params: Tensors, grads: Tensors, avgs: Tensors, squares: Tensors, steps: Tensors, copies: Copies, own: Copies
    ) -> list[Tensors]:
        adamw(params, grads, avgs, squares, steps)
        moved = own if move_copies is published_loop else copies
        pairs = [(copy, param) for copy, param in zip(moved, params, strict=True) if copy is not None]
        followers, followed = map(list, zip(*pairs, strict=True))
        move_copies(followers, followed)
        return [params, avgs, squares, followers]

    return run


def published_loop(copies: Tensors, params: Tensors) -> None:
    """The loop of the published code, which gives each copy a new tensor."""
    for param, copy in zip(params, copies, strict=True):
        copy.data = copy.data * MOMENTUM + param.data * (1.0 - MOMENTUM)


def foreach_lerp(copies: Tensors, params: Tensors) -> None:
    torch._foreach_lerp_(copies, params, 1.0 - MOMENTUM)


def in_one_launch(copies: Tensors, params: Tensors) -> None:
    momentum_update_(copies, params, MOMENTUM)


def ours(
    params: Tensors, grads: Tensors, avgs: Tensors, squares: Tensors, steps: Tensors, copies: Copies, own: Copies
) -> list[Tensors]:
    adamw_momentum_step_(params, grads, avgs, squares, steps, copies, momentum=MOMENTUM, **NUMBERS)
    return [params, avgs, squares, [copy for copy in copies if copy is not None]]
