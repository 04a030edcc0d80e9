"""Contrastive loss against queues of 57,600 keys, forward and backward: published form, torch.compile of it, Inf-CL, one sweep.

The published form multiplies 6 times (two similarities, two of momentum features, two gradients), and holds about ten
matrices of B x (B + 57,600). One sweep multiplies 8 times, since it weighs the keys before it knows the softmax's sums, and
holds none. It reads each queue once: 118 MB in fp32. The answer is the loss, both similarities and the three gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_fast.config import BlipConfig
from blip_fast.ops import contrastive_loss
from blip_fast.reference.contrastive import contrastive_loss as published

from ..backends import backend_variants
from ..job import Aim, Case, Setting, Variant
from ..peers.packages import why_absent

PLACE = 30
ALPHA, TEMPERATURE = 0.4, 0.07
# Over the published form, by batch; over torch.compile of it; on a GPU also as a share of the limit.
AIMS = {"cpu": ({16: 3.0, 75: 1.4}, 1.3, None), "cuda": ({16: 8.0, 75: 8.0}, 2.0, 0.6)}
Answer = tuple[Tensor, ...]


def cases(setting: Setting) -> Iterable[Case]:
    """Published queue at batch 16 and 75, fp32 on a CPU and bf16 on a GPU; with ``--full`` also alpha 0 and the other dtype."""
    on_gpu = setting.device.type == "cuda"
    dtype, other = (torch.bfloat16, torch.float32) if on_gpu else (torch.float32, torch.bfloat16)
    queued = BlipConfig.base().queue_size
    for batch in (16, 75):
        yield contrastive_case(batch, queued, ALPHA, dtype, setting.device)
    if not setting.quick:
        yield contrastive_case(75, queued, 0.0, dtype, setting.device)
        yield contrastive_case(75, queued, ALPHA, other, setting.device)
        if on_gpu:
            yield contrastive_case(256, queued, ALPHA, dtype, setting.device)


def contrastive_case(batch: int, queued: int, alpha: float, dtype: torch.dtype, device: torch.device) -> Case:
    """The loss of ``batch`` pairs against ``queued`` keys for each direction."""
    embed = BlipConfig.base().embed_dim

    def inputs(seed: int) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(seed)

        def features(count: int) -> Tensor:
            return F.normalize(torch.randn(count, embed, generator=generator, device=device), dim=1).to(dtype)

        online = [features(batch).requires_grad_() for _ in range(2)]
        momentum, queues = [features(batch) for _ in range(2)], [features(queued).T.contiguous() for _ in range(2)]
        return *online, *momentum, *queues, torch.tensor(TEMPERATURE, device=device, requires_grad=True)

    def variant(name: str, loss: Callable[[], Callable[..., Answer]], **options: Any) -> Variant:
        return Variant(name, lambda *args: answer(loss(), alpha, *args), cuda_graph=True, **options)

    over_published, over_compiled, of_limit = AIMS[device.type]
    aims = [Aim(over_published.get(batch, 8.0), over="published form"), Aim(over_compiled, over="torch.compile of it")]
    products = 6 if alpha else 4  # the fewest, not the 8 of one sweep
    return Case(
        name=f"batch {batch}, queue {embed} x {queued}, alpha {alpha}, {str(dtype).removeprefix('torch.')}",
        inputs=inputs,
        variants=[
            variant("published form", lambda: published, role="baseline"),
            variant("torch.compile of it", compiled),
            variant(
                "Inf-CL",
                lambda: inf_cl_loss,
                unavailable="it takes no soft targets" if alpha else why_absent("inf_cl", device),
            ),
            *backend_variants(
                "contrastive_loss", lambda *args: answer(contrastive_loss, alpha, *args), device, cuda_graph=True
            ),
        ],
        truth=lambda *args: answer(
            published, alpha, *(t.detach().double().requires_grad_(t.requires_grad) for t in args)
        ),
        tolerance=1e-5 if dtype == torch.float32 else 3e-2,
        flops=products * 2 * batch * embed * (batch + queued),
        bytes=dtype.itemsize * 2 * embed * queued,
        dtype=dtype,
        aims=[*aims, *([Aim(of_limit)] if of_limit else [])]
        if dtype != torch.bfloat16 or device.type == "cuda"
        else [],
        input_sets=2,  # 118 MB each in fp32
    )


@functools.cache
def compiled() -> Callable[..., Answer]:
    return torch.compile(published)


def inf_cl_loss(
    image_feat: Tensor,
    text_feat: Tensor,
    image_feat_m: Tensor,
    text_feat_m: Tensor,
    image_queue: Tensor,
    text_queue: Tensor,
    temp: Tensor,
    alpha: float,
) -> Answer:
    """The same by Inf-CL (arXiv 2410.17243), which tiles the softmax over keys that lie in one matrix."""
    from inf_cl import cal_flash_loss

    assert not alpha
    losses, sims = [], []
    for query, key_m, queue in ((image_feat, text_feat_m, text_queue), (text_feat, image_feat_m, image_queue)):
        losses.append(cal_flash_loss(query, torch.cat([key_m, queue.T]), scale=1 / temp).mean())
        sims.append(query @ key_m.T / temp)
    return (losses[0] + losses[1]) / 2, *sims


def answer(loss: Callable[..., Answer], alpha: float, *args: Tensor) -> Answer:
    """Loss, similarities, and the gradients of both features and the temperature."""
    value, sim_i2t, sim_t2i = loss(*args, alpha)
    gradients = torch.autograd.grad(value, (args[0], args[1], args[6]))
    return value.detach(), sim_i2t.detach(), sim_t2i.detach(), *gradients
