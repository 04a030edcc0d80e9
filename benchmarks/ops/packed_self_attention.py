"""Self-attention of packed captions against flash-attn, and the published form and SDPA with their copies to and from padding.

The packed rows go in and come out: the copies are part of the work of the padded forms. Forward and backward; an answer is
the output and the gradients of query, key and value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_fast.ops import packed_self_attention

from ..backends import backend_variants
from ..captions import PADDED_LENGTH, caption_lengths
from ..job import Aim, Case, Setting, Variant
from ..peers.packages import flash_attention, why_no_flash_attn

PLACE = 25
H, D = 12, 64
AIMS = (Aim(1.5, over="SDPA, padded"), Aim(3.0, over="published form"))
Answer = tuple[Tensor, ...]


def cases(setting: Setting) -> Iterable[Case]:
    """Captions of a pre-training batch through the text encoder; with ``--full`` a larger batch, and the decoder."""
    dtype = torch.bfloat16 if setting.device.type == "cuda" else torch.float32
    yield _case(16, False, dtype, setting.device)
    if not setting.quick:
        yield _case(75, False, dtype, setting.device)
        yield _case(75, True, dtype, setting.device)


def _case(texts: int, causal: bool, dtype: torch.dtype, device: torch.device) -> Case:
    forms = Forms(caption_lengths(texts, 0), causal, device)
    lengths = forms.lengths
    pairs = int((lengths * (lengths + 1) // 2 if causal else lengths.square()).sum())
    tokens = int(lengths.sum())

    def inputs(seed: int) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(seed)
        parts = [torch.randn(tokens, H, D, generator=generator, device=device).to(dtype) for _ in range(4)]
        return *(part.requires_grad_() for part in parts[:3]), parts[3]

    return Case(
        name=f"{texts} captions, {'causal' if causal else 'bidirectional'}, {str(dtype).removeprefix('torch.')}",
        inputs=inputs,
        variants=[
            Variant("published form", forms.published, role="baseline", cuda_graph=True),
            Variant("SDPA, padded", forms.sdpa, cuda_graph=True),
            Variant("flash-attn", forms.flash, unavailable=why_no_flash_attn(dtype, device)),
            *backend_variants("packed_self_attention", forms.ours, device, cuda_graph=True),
        ],
        truth=lambda *args: forms.published(*(t.detach().double().requires_grad_(t.requires_grad) for t in args)),
        tolerance=2e-5 if dtype == torch.float32 else 2e-2,
        flops=12 * pairs * H * D,
        bytes=12 * tokens * H * D * dtype.itemsize,
        dtype=dtype,
        aims=AIMS,
    )


class Forms:
    """The forms of one job, with its tables on the device, made before the clock runs."""

    def __init__(self, lengths: Tensor, causal: bool, device: torch.device) -> None:
        self.lengths, self.causal = lengths, causal
        self.cu_seqlens = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32).to(device)
        self.longest = int(lengths.max())
        self.wide, self.narrow = (Padding(lengths, width, causal, device) for width in (PADDED_LENGTH, self.longest))

    def published(self, *inputs: Tensor) -> Answer:
        """BERT's: scores, mask, softmax and product, on texts padded to 30 tokens."""

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            scores = (query @ key.mT / D**0.5).masked_fill(~self.wide.seen, -10000.0)
            return torch.softmax(scores, dim=-1) @ value

        return self.wide.run(attend, *inputs)

    def sdpa(self, *inputs: Tensor) -> Answer:
        """Texts padded to the longest of the batch."""

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(query, key, value, self.narrow.seen)

        return self.narrow.run(attend, *inputs)

    def flash(self, query: Tensor, key: Tensor, value: Tensor, grad_out: Tensor) -> Answer:
        bounds, longest = (self.cu_seqlens, self.cu_seqlens), (self.longest, self.longest)
        out = flash_attention(query, key, value, bounds, longest, self.causal)
        return out.detach(), *torch.autograd.grad(out, (query, key, value), grad_out)

    def ours(self, query: Tensor, key: Tensor, value: Tensor, grad_out: Tensor) -> Answer:
        out = packed_self_attention(query, key, value, self.cu_seqlens, self.longest, self.causal)
        return out.detach(), *torch.autograd.grad(out, (query, key, value), grad_out)


class Padding:
    """Texts padded to ``width`` tokens: where each row goes, and which keys are seen."""

    def __init__(self, lengths: Tensor, width: int, causal: bool, device: torch.device) -> None:
        self.size = (len(lengths), width)
        real = torch.arange(width) < lengths[:, None]
        self.place = real.flatten().nonzero()[:, 0].to(device)
        seen = real[:, None, None]
        self.seen = (seen & torch.ones(width, width, dtype=torch.bool).tril() if causal else seen).to(device)

    def run(self, attend: Callable[..., Tensor], *inputs: Tensor) -> Answer:
        *parts, grad_out = inputs

        def pad(rows: Tensor) -> Tensor:
            room = rows.new_zeros(self.size[0] * self.size[1], H, D)
            return room.index_copy(0, self.place, rows).unflatten(0, self.size).transpose(1, 2)

        out = attend(*map(pad, parts)).transpose(1, 2).flatten(0, 1)[self.place]
        return out.detach(), *torch.autograd.grad(out, parts, grad_out)
