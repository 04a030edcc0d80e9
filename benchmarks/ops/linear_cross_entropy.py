"""Cross-entropy of BLIP's language-modelling head against eager torch, chunks of rows, torch's own op, Liger and CCE.

Forward and backward: three products of the counted rows, 6 n C V FLOPs. Every answer is the loss and the gradients of
hidden, weight and bias; the peak memory includes these (97 MB at C = 768, V = 30,524 in fp32, most of it the weight's).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_fast.ops import linear_cross_entropy
from blip_fast.reference import linear_cross_entropy as eager

from ..backends import backend_variants
from ..job import Aim, Case, Setting, Variant
from ..peers.packages import why_absent

PLACE = 40
C, V = 768, 30524
CHUNK = 128
NO_BFLOAT16 = ("DEFAULT", "AVX2")  # CPUs on which torch's bfloat16 products take a minute a step
AIMS = {"cpu": (Aim(1.5, over="eager"),), "cuda": (Aim(1.0, over="eager"), Aim(0.8))}
Answer = tuple[Tensor, ...]
Loss = Callable[..., Tensor]


@dataclasses.dataclass(frozen=True)
class Job:
    """Which of ``rows`` count, and how the loss is taken. Reduction ``"none"``: weighted rows, as VQA weights answers."""

    name: str
    rows: int
    counted: Tensor
    dtype: torch.dtype
    smoothing: float = 0.1
    reduction: str = "mean"

    def __call__(self, loss: Loss, hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Answer:
        """The loss and its gradients."""
        value = loss(hidden, weight, bias, labels, label_smoothing=self.smoothing, reduction=self.reduction)
        if self.reduction == "none":
            value = (value * row_weights(value)).sum()
        return value.detach(), *torch.autograd.grad(value, (hidden, weight, bias))


def cases(setting: Setting) -> Iterable[Case]:
    """1,000 packed tokens; with ``--full`` padded texts, weighted rows, no smoothing, and the other precision."""
    on_gpu = setting.device.type == "cuda"
    dtype, other = (torch.bfloat16, torch.float32) if on_gpu else (torch.float32, torch.bfloat16)
    packed = (torch.arange(1000) % 7 != 3).nonzero()[:, 0]
    padded = (torch.arange(75 * 30) % 30 < 13).nonzero()[:, 0]
    jobs = [Job("1,000 tokens, 1 in 7 ignored", 1000, packed, dtype)]
    if not setting.quick:
        jobs += [
            Job("75 texts of 13 tokens, padded to 30", 75 * 30, padded, dtype),
            Job("1,000 tokens, weighted rows", 1000, packed, dtype, reduction="none"),
            Job("1,000 tokens, no label smoothing", 1000, packed, dtype, smoothing=0.0),
        ]
        if on_gpu or torch.backends.cpu.get_cpu_capability() not in NO_BFLOAT16:
            jobs.append(Job("1,000 tokens, 1 in 7 ignored", 1000, packed, other))
    return (_case(job, setting.device) for job in jobs)


def _case(job: Job, device: torch.device) -> Case:
    def inputs(seed: int) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(seed)
        hidden = torch.randn(job.rows, C, generator=generator, device=device)
        weight = torch.randn(V, C, generator=generator, device=device) * 0.05
        bias = torch.randn(V, generator=generator, device=device) * 0.1
        labels = torch.full((job.rows,), -100, device=device)
        words = torch.randint(0, V, (len(job.counted),), generator=generator, device=device)
        labels[job.counted.to(device)] = words
        return *(t.to(job.dtype).requires_grad_() for t in (hidden, weight, bias)), labels

    def variant(name: str, loss: Loss, unavailable: str | None = None, **options: Any) -> Variant:
        return Variant(name, lambda *args: job(loss, *args), unavailable=unavailable, **options)

    smooth = "it takes no label smoothing" if job.smoothing else None
    chunking = None if hasattr(torch.nn, "LinearCrossEntropyOptions") else "this torch has no such function"
    return Case(
        name=f"{job.name}, {str(job.dtype).removeprefix('torch.')}",
        inputs=inputs,
        variants=[
            variant("eager", eager, role="baseline", cuda_graph=True),
            Variant(f"chunks of {CHUNK} rows", lambda *args: chunked(job, *args), cuda_graph=True),
            variant("torch F.linear_cross_entropy", torch_loss, smooth or chunking),
            variant("Liger", liger_loss, why_absent("liger_kernel", device)),
            variant("CCE", cce_loss, smooth or why_absent("cut_cross_entropy", device)),
            *backend_variants(
                "linear_cross_entropy", lambda *args: job(linear_cross_entropy, *args), device, cuda_graph=True
            ),
        ],
        truth=lambda *args: job(eager, *(_double(t) for t in args)),
        tolerance=1e-5 if job.dtype == torch.float32 else 2e-2,
        flops=6 * len(job.counted) * C * V,
        dtype=job.dtype,
        aims=[aim for aim in AIMS[device.type] if job.dtype == torch.float32 or device.type == "cuda"],
        input_sets=2,  # 97 MB each
    )


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().double().requires_grad_() if tensor.is_floating_point() else tensor


def row_weights(rows: Tensor) -> Tensor:
    return torch.linspace(0.1, 1.0, len(rows), dtype=rows.dtype, device=rows.device)


def chunked(job: Job, hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Answer:
    """Eager over chunks of rows, gradients added up: what one writes by hand against the memory."""
    factors = row_weights(hidden[:, 0]) if job.reduction == "none" else 1.0 / (labels != -100).sum().expand(job.rows)
    total, gradients = 0, [torch.zeros_like(t) for t in (hidden, weight, bias)]
    for start in range(0, job.rows, CHUNK):
        part = slice(start, start + CHUNK)
        rows = hidden[part].detach().requires_grad_()
        losses = eager(rows, weight, bias, labels[part], label_smoothing=job.smoothing, reduction="none")
        loss = (losses * factors[part]).sum()
        total = total + loss.detach()
        gradients[0][part], *others = torch.autograd.grad(loss, (rows, weight, bias))
        for whole, grad in zip(gradients[1:], others, strict=True):
            whole += grad
    return total, *gradients


def torch_loss(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, **options: Any) -> Tensor:
    chunking = torch.nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(hidden, weight, labels, linear_bias=bias, options=chunking, **options)


def liger_loss(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, **options: Any) -> Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return liger_fused_linear_cross_entropy(hidden, weight, labels, bias=bias, **options)


def cce_loss(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, **options: Any) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy as cut

    return cut(hidden, weight, labels, bias=bias, reduction=options["reduction"])
