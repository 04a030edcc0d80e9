"""Image-text contrastive loss against momentum keys and queues: ALBEF, equations 1 to 6; BLIP, section 3.2.

There is no CUDA C++: the sweep is two matrix products with a softmax between them, which Triton maps to tensor cores. Losses
whose keys carry gradients (CLIP's within the batch, SigLIP) are another operation: they would need a second sweep.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from blip_fast.ops.registry import FLOATS, Operation
from blip_fast.reference import contrastive as reference

MAX_EMBED = 1024  # of the Triton kernel, which holds whole rows


def contrastive_loss(
    image_feat: Tensor,
    text_feat: Tensor,
    image_feat_m: Tensor,
    text_feat_m: Tensor,
    image_queue: Tensor,
    text_queue: Tensor,
    temp: Tensor | float,
    alpha: Tensor | float,
    ids: Tensor | None = None,
    queue_ids: Tensor | None = None,
    offset: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Contrastive loss of B pairs against N + Q momentum keys, in both directions, without a (B, Q) matrix.

    With keys k (momentum features of the batch, then the queue) and an online feature q, the loss of a row is
    ``-sum_j target_j log_softmax(q . k / temp)_j``; the target is ``alpha * softmax(q_m . k / temp)`` of the momentum
    feature plus ``(1 - alpha)`` spread evenly over the positives: the row's own pair, or all keys of equal id. The
    gradients are accumulated in the same sweep over the keys, so that backward only scales them. Statistics are fp32, and
    under autocast inputs keep their dtypes: on a GPU only 16-bit features use tensor cores, fp32 ones stay exact. Extra
    memory is O(B (E + N)) for each thread or multiprocessor that takes a share of the keys.

    Args:
        image_feat, text_feat: (B, E) online features, B >= 1, of one dtype: float32, bfloat16 or float16 (float64:
            reference backend).
        image_feat_m, text_feat_m: (N, E) momentum features of the same dtype. On one rank N = B; on several they are
            gathered from all ranks, and this rank's are the rows ``offset`` to ``offset + B - 1``.
        image_queue, text_queue: (E, Q) earlier momentum features, contiguous, Q >= 0; any floating dtype.
        temp: temperature, a positive number or a tensor of one element.
        alpha: weight of the momentum targets, in [0, 1]: a number, or a tensor of one element on the features' device.
            At 0 the momentum rows are not computed. A number may change from step to step without recompilation.
        ids: (N,) int64 image ids; given together with ``queue_ids``.
        queue_ids: (Q,) or (1, Q) int64 ids of the queued features.
        offset: where this rank's rows begin in the gathered ones.

    Returns:
        The loss (mean over rows, halved sum of both directions), differentiable once with respect to ``image_feat``,
        ``text_feat`` and ``temp``; then the similarities over temp of online images and momentum texts of the batch, and of
        online texts and momentum images, (B, N) each, for mining and without gradient. All fp32 (fp64 for fp64 features).

    Raises:
        ValueError: shapes, dtypes, devices or layout do not fit, or alpha is a number outside [0, 1].
    """
    _check(image_feat, text_feat, image_feat_m, text_feat_m, image_queue, text_queue, offset)
    _check_ids(ids, queue_ids, image_feat_m.shape[0], image_queue.shape[1], image_feat.device)
    features = (image_feat, text_feat, image_feat_m, text_feat_m)
    temp = _scalar("temp", temp, image_feat)
    if not isinstance(alpha, Tensor) and not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha is {alpha}; expected a number in [0, 1]")
    alpha = _scalar("alpha", alpha, image_feat).detach()
    if ids is not None and queue_ids is not None:
        ids, queue_ids = ids.contiguous(), queue_ids.reshape(-1).contiguous()
    outputs = _operation.call(
        *(feature.contiguous() for feature in features), image_queue, text_queue, temp, alpha, ids, queue_ids, offset
    )
    return outputs[0], outputs[1], outputs[2]


def _statistics_dtype(feature: Tensor) -> torch.dtype:
    return torch.promote_types(feature.dtype, torch.float32)


def _scalar(name: str, value: Tensor | float, feature: Tensor) -> Tensor:
    """``value`` as a tensor () on the features' device, in the dtype of the statistics."""
    dtype = _statistics_dtype(feature)
    if not isinstance(value, Tensor):
        return feature.new_zeros((), dtype=dtype) + value  # torch.full would recompile for each value
    if value.numel() != 1 or value.device != feature.device:
        raise ValueError(
            f"{name} has {value.numel()} elements on {value.device}; expected one on {feature.device}, or a number"
        )
    return value.to(dtype).reshape(())


def _check(
    image_feat: Tensor,
    text_feat: Tensor,
    image_feat_m: Tensor,
    text_feat_m: Tensor,
    image_queue: Tensor,
    text_queue: Tensor,
    offset: int,
) -> None:
    if image_feat.dim() != 2 or image_feat.shape[0] == 0 or image_feat.shape[1] == 0:
        raise ValueError(f"image_feat has shape {tuple(image_feat.shape)}; expected (B, E) with B and E at least 1")
    if not image_feat.is_floating_point():
        raise ValueError(f"image_feat is {image_feat.dtype}; expected floating point")
    batch, embed = image_feat.shape
    if text_feat.shape != image_feat.shape:
        raise ValueError(f"text_feat has shape {tuple(text_feat.shape)}; expected {(batch, embed)} as image_feat")
    if image_feat_m.dim() != 2 or image_feat_m.shape[1] != embed:
        raise ValueError(f"image_feat_m has shape {tuple(image_feat_m.shape)}; expected (N, {embed})")
    gathered = image_feat_m.shape[0]
    if text_feat_m.shape != image_feat_m.shape:
        raise ValueError(f"text_feat_m has shape {tuple(text_feat_m.shape)}; expected {(gathered, embed)}")
    if offset < 0 or offset + batch > gathered:
        raise ValueError(
            f"offset is {offset}; expected 0 to {gathered - batch}, for {batch} of {gathered} gathered rows"
        )
    if image_queue.dim() != 2 or image_queue.shape[0] != embed or text_queue.shape != image_queue.shape:
        shapes = f"{tuple(image_queue.shape)} and {tuple(text_queue.shape)}"
        raise ValueError(f"image_queue and text_queue have shapes {shapes}; expected ({embed}, Q) both")
    if not (image_queue.is_contiguous() and text_queue.is_contiguous()):
        raise ValueError("image_queue or text_queue is not contiguous; expected contiguous (E, Q) tensors")
    features = {"text_feat": text_feat, "image_feat_m": image_feat_m, "text_feat_m": text_feat_m}
    for name, tensor in {**features, "image_queue": image_queue, "text_queue": text_queue}.items():
        if tensor.device != image_feat.device:
            raise ValueError(f"{name} is on {tensor.device}; expected {image_feat.device} as image_feat")
        if not tensor.is_floating_point() or (name in features and tensor.dtype != image_feat.dtype):
            expected = f"{image_feat.dtype} as image_feat" if name in features else "floating point"
            raise ValueError(f"{name} is {tensor.dtype}; expected {expected}")
    if text_queue.dtype != image_queue.dtype:
        raise ValueError(f"text_queue is {text_queue.dtype}; expected {image_queue.dtype} as image_queue")


def _check_ids(ids: Tensor | None, queue_ids: Tensor | None, gathered: int, queued: int, device: torch.device) -> None:
    if (ids is None) != (queue_ids is None):
        raise ValueError("one of ids and queue_ids is given without the other; expected both or neither")
    for name, tensor, count in (("ids", ids, gathered), ("queue_ids", queue_ids, queued)):
        if tensor is None:
            continue
        if tensor.dtype != torch.int64 or tensor.numel() != count or tensor.device != device:
            found = f"{tensor.dtype} of {tensor.numel()} elements on {tensor.device}"
            raise ValueError(f"{name} is {found}; expected int64 of {count} elements on {device}")


def _fake(image_feat: Tensor, text_feat: Tensor, image_feat_m: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    dtype = _statistics_dtype(image_feat)
    batch, gathered = image_feat.shape[0], image_feat_m.shape[0]
    shapes = ((), (batch, gathered), (batch, gathered), image_feat.shape, image_feat.shape, ())
    return tuple(image_feat.new_empty(shape, dtype=dtype) for shape in shapes)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[3:])
    ctx.dtype = inputs[0].dtype


def _backward(ctx: Any, grad_loss: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
    grad_image, grad_text, grad_temp = (grad_loss * gradient for gradient in ctx.saved_tensors)
    return grad_image.to(ctx.dtype), grad_text.to(ctx.dtype), None, None, None, None, grad_temp, *[None] * 4


def _too_wide(image_feat: Tensor, *others: Tensor) -> str | None:
    return f"it takes E <= {MAX_EMBED}, got {image_feat.shape[1]}" if image_feat.shape[1] > MAX_EMBED else None


def _flops(image_feat: torch.Size, text_feat: torch.Size, image_feat_m: torch.Size, *rest: Any, **unused: Any) -> int:
    """Of the matrix products with alpha > 0, all executed in forward: scores and expected keys of 2 B rows, twice."""
    (batch, embed), queue = image_feat, rest[1]
    return 2 * (2 * batch) * 2 * 2 * embed * (image_feat_m[0] + queue[1])


_operation = Operation(
    "contrastive_loss(Tensor image_feat, Tensor text_feat, Tensor image_feat_m, Tensor text_feat_m, Tensor image_queue, "
    "Tensor text_queue, Tensor temp, Tensor alpha, Tensor? ids, Tensor? queue_ids, int offset) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _fake,
)
_operation.add_reference(reference.contrastive_loss_with_gradients)
_operation.add_native("cpu", FLOATS)
_operation.add_triton("contrastive:contrastive_loss", FLOATS, _too_wide)
_operation.add_autograd(_backward, _setup_context)
_operation.add_flops(_flops)
