"""Cross-attention of packed texts to shared images against the published padded form, SDPA, xformers and flash-attn.

The published form gives every text its own copy of the image's keys and values and pads texts to 30 tokens. Where gradients
are taken, an answer is the output and the gradients of queries and of keys and values; the decoding case is forward only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_fast.ops import cross_attention, group_rows

from ..backends import backend_variants
from ..job import Aim, Case, Setting, Variant
from ..peers.packages import flash_attention, why_absent, why_no_flash_attn

PLACE = 30
H, D = 12, 64
AIMS = {
    "training": {
        "cpu": (Aim(8.0, over="published form"), Aim(2.5, over="SDPA, copies")),
        "cuda": (Aim(5.0, over="published form"), Aim(2.0, over="SDPA, copies"), Aim(0.67)),
    },
    "decoding": {"cpu": (Aim(2.0, over="SDPA, copies"),), "cuda": (Aim(0.7), Aim(1.0, over="SDPA, copies"))},
    "encoding": {"cpu": (Aim(1.2, over="SDPA, copies"),), "cuda": ()},
}
Answer = tuple[Tensor, ...]


@dataclasses.dataclass(frozen=True)
class Job:
    """Texts of ``lengths`` (S,), of which text s looks at image ``s % images``; padded to ``padded`` tokens by the others."""

    name: str
    images: int
    keys: int
    lengths: Tensor
    padded: int
    dtype: torch.dtype
    kind: str = "training"

    @property
    def image_of_text(self) -> Tensor:
        return torch.arange(len(self.lengths)) % self.images

    @property
    def cu_seqlens(self) -> Tensor:
        return F.pad(self.lengths.cumsum(0), (1, 0))

    @property
    def place(self) -> Tensor:
        """Where each packed row stands among the padded ones (S * padded)."""
        return (torch.arange(self.padded) < self.lengths[:, None]).flatten().nonzero()[:, 0]


def cases(setting: Setting) -> Iterable[Case]:
    """A pre-training step of 16 images, and beam search; with ``--full`` more images, re-ranking and the other precision."""
    on_gpu = setting.device.type == "cuda"
    dtype, other = (torch.bfloat16, torch.float32) if on_gpu else (torch.float32, torch.bfloat16)
    captions = torch.randint(8, 19, (4 * 75,), generator=torch.Generator().manual_seed(0))
    single = torch.ones(96, dtype=torch.int64)
    batch = 75 if on_gpu else 16
    jobs = [
        Job(f"pre-training, {batch} images of 197, 4 texts each", batch, 197, captions[: 4 * batch], 30, dtype),
        Job("decoding, 32 images of 577, 3 beams", 32, 577, single, 1, dtype, "decoding"),
    ]
    if not setting.quick:
        rerank = torch.full((8 * 16,), 14)
        jobs += [
            Job("pre-training, 75 images of 197, 4 texts each", 75, 197, captions, 30, other if on_gpu else dtype),
            Job("re-ranking, 8 images of 577, 16 texts each", 8, 577, rerank, 35, dtype),
            Job("pre-training, 16 images of 197, 4 texts each", 16, 197, captions[:64], 30, other),
            Job("decoding, 32 images of 577, 3 beams", 32, 577, single, 1, other, "decoding"),
            Job("image encoder, 4 images of 577 to themselves", 4, 577, torch.full((4,), 577), 577, dtype, "encoding"),
        ]
    return (attention_case(job, setting.device) for job in jobs)


def attention_case(job: Job, device: torch.device) -> Case:
    """Attention of one job, in training forward and backward."""
    train = job.kind == "training"
    tokens = int(job.lengths.sum())

    def inputs(seed: int) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(seed)
        query = torch.randn(tokens, H, D, generator=generator, device=device).to(job.dtype)
        key_value = torch.randn(job.images, job.keys, 2, H, D, generator=generator, device=device).to(job.dtype)
        grad_out = torch.randn(tokens, H, D, generator=generator, device=device).to(job.dtype)
        padded = query.new_zeros(len(job.lengths) * job.padded, H, D).index_copy(0, job.place.to(device), query)
        if not train:  # a cache holds the copies from the first token on
            copies = key_value[job.image_of_text.to(device)].transpose(1, 3).contiguous()
            return query, key_value, padded, copies
        return *(t.requires_grad_() for t in (query, key_value, padded)), grad_out

    make = TrainingForms if train else InferenceForms
    forms = make(job, device)
    products, size = 12 if train else 4, job.dtype.itemsize
    return Case(
        name=f"{job.name}, {str(job.dtype).removeprefix('torch.')}",
        inputs=inputs,
        variants=[
            Variant("published form", forms.published, role="baseline", cuda_graph=True),
            Variant("SDPA, copies", forms.sdpa, cuda_graph=True),
            Variant("flash-attn", forms.flash, unavailable=why_no_flash_attn(job.dtype, device)),
            *forms.others(),
            *backend_variants("cross_attention", forms.ours, device, cuda_graph=True),
        ],
        truth=forms.truth,
        tolerance=2e-5 if job.dtype == torch.float32 else 2e-2,
        flops=products * tokens * job.keys * H * D,
        bytes=(2 if train else 1) * size * H * D * (2 * job.images * job.keys + 2 * tokens),
        dtype=job.dtype,
        aims=AIMS[job.kind][device.type] if job.dtype == torch.float32 or device.type == "cuda" else (),
    )


class Forms:
    """What the forms of one job share: its tables on the device, made before the clock runs."""

    def __init__(self, job: Job, device: torch.device) -> None:
        self.job = job
        self.texts = len(job.lengths)
        self.image_of_text, self.place = job.image_of_text.to(device), job.place.to(device)
        self.cu_seqlens = job.cu_seqlens.to(device)
        self.groups = group_rows(self.cu_seqlens, self.image_of_text, int(job.lengths.sum()), job.images)
        self.rows = self.groups.rows.long()  # sorted by image
        self.rows_of_image = self.groups.bounds.diff()[:-1].tolist()
        bounds = (F.pad(torch.tensor(self.rows_of_image).cumsum(0), (1, 0)), torch.arange(job.images + 1) * job.keys)
        self.bounds = tuple(bound.to(torch.int32).to(device) for bound in bounds)

    def truth(self, *inputs: Tensor) -> Answer:
        """The published form in float64."""
        return self.published(*(t.detach().double().requires_grad_(t.requires_grad) for t in inputs))

    def published(self, *inputs: Tensor) -> Answer:
        """The published form; each kind of job has its own."""
        raise TypeError(f"{type(self).__name__} does not say what the published form is")

    def flash(self, query: Tensor, key_value: Tensor, padded: Tensor, last: Tensor) -> Answer:
        """flash-attn, whose texts are the rows of an image; each kind of job has its own."""
        raise TypeError(f"{type(self).__name__} does not say what flash-attn does")

    def flash_by_image(self, query: Tensor, key_value: Tensor) -> Tensor:
        """Rows sorted by image, each image's rows and keys a sequence of their own, and back again."""
        key, value = (t.flatten(0, 1) for t in key_value.unbind(2))
        longest = (max(self.rows_of_image), self.job.keys)
        out = flash_attention(query[self.rows], key, value, self.bounds, longest, causal=False)
        return torch.empty_like(out).index_copy(0, self.rows, out)

    def others(self) -> list[Variant]:
        return []


def eager_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """BERT's: scores, softmax and product as three operations. (S, H, N, D), (S, H, L, D)."""
    return torch.softmax(query @ key.mT / D**0.5, dim=-1) @ value


class TrainingForms(Forms):
    """Forward and backward. Inputs: query and grad_out (T, H, D), key_value (B, L, 2, H, D), padded query (S N, H, D)."""

    def published(self, query: Tensor, key_value: Tensor, padded: Tensor, grad_out: Tensor) -> Answer:
        return self.with_copies(eager_attention, key_value, padded, grad_out)

    def sdpa(self, query: Tensor, key_value: Tensor, padded: Tensor, grad_out: Tensor) -> Answer:
        return self.with_copies(F.scaled_dot_product_attention, key_value, padded, grad_out)

    def flash(self, query: Tensor, key_value: Tensor, padded: Tensor, grad_out: Tensor) -> Answer:
        out = self.flash_by_image(query, key_value)
        return out.detach(), *torch.autograd.grad(out, (query, key_value), grad_out)

    def ours(self, query: Tensor, key_value: Tensor, padded: Tensor, grad_out: Tensor) -> Answer:
        out = cross_attention(query, key_value, None, self.cu_seqlens, self.image_of_text, groups=self.groups)
        return out.detach(), *torch.autograd.grad(out, (query, key_value), grad_out)

    def with_copies(self, attend: Callable[..., Tensor], key_value: Tensor, padded: Tensor, grad_out: Tensor) -> Answer:
        key, value = (t[self.image_of_text].transpose(1, 2) for t in key_value.unbind(2))
        query = padded.unflatten(0, (self.texts, -1)).transpose(1, 2)
        out = attend(query, key, value).transpose(1, 2).flatten(0, 1)[self.place]
        grad_query, grad_key_value = torch.autograd.grad(out, (padded, key_value), grad_out)
        return out.detach(), grad_query[self.place], grad_key_value

    def others(self) -> list[Variant]:
        """xformers: rows sorted by image, a block-diagonal bias whose blocks are the images."""
        reason = why_absent("xformers", self.place.device)
        if reason is not None:
            return [Variant("xformers, block-diagonal", self.ours, unavailable=reason)]
        from xformers.ops import fmha, memory_efficient_attention

        bias = fmha.attn_bias.BlockDiagonalMask.from_seqlens(self.rows_of_image, [self.job.keys] * self.job.images)

        def run(query: Tensor, key_value: Tensor, padded: Tensor, grad_out: Tensor) -> Answer:
            key, value = (t.flatten(0, 1)[None] for t in key_value.unbind(2))
            out = memory_efficient_attention(query[self.rows][None], key, value, bias)[0]
            out = torch.empty_like(out).index_copy(0, self.rows, out)
            return out.detach(), *torch.autograd.grad(out, (query, key_value), grad_out)

        return [Variant("xformers, block-diagonal", run)]


class InferenceForms(Forms):
    """Forward only. Inputs: query (T, H, D), key_value (B, L, 2, H, D), padded query (S N, H, D), copies (S, H, 2, L, D)."""

    def published(self, query: Tensor, key_value: Tensor, padded: Tensor, copies: Tensor) -> Answer:
        return self.on_copies(eager_attention, padded, copies)

    def sdpa(self, query: Tensor, key_value: Tensor, padded: Tensor, copies: Tensor) -> Answer:
        return self.on_copies(F.scaled_dot_product_attention, padded, copies)

    def on_copies(self, attend: Callable[..., Tensor], padded: Tensor, copies: Tensor) -> Answer:
        with torch.no_grad():
            out = attend(padded.unflatten(0, (self.texts, -1)).transpose(1, 2), *copies.unbind(2))
            return (out.transpose(1, 2).flatten(0, 1),)

    def flash(self, query: Tensor, key_value: Tensor, padded: Tensor, copies: Tensor) -> Answer:
        with torch.no_grad():
            return (self.flash_by_image(query, key_value),)

    def ours(self, query: Tensor, key_value: Tensor, padded: Tensor, copies: Tensor) -> Answer:
        with torch.no_grad():
            return (cross_attention(query, key_value, None, self.cu_seqlens, self.image_of_text, groups=self.groups),)

    def others(self) -> list[Variant]:
        """The beams of an image as the rows of one query, which SDPA can do where every image has equally many."""
        if self.job.kind != "decoding":
            return []

        def run(query: Tensor, key_value: Tensor, padded: Tensor, copies: Tensor) -> Answer:
            with torch.no_grad():
                rows = query.unflatten(0, (-1, self.job.images)).permute(1, 2, 0, 3)
                out = F.scaled_dot_product_attention(rows, *(t.transpose(1, 2) for t in key_value.unbind(2)))
                return (out.permute(2, 0, 1, 3).flatten(0, 1),)

        return [Variant("SDPA, beams as rows", run, cuda_graph=True)]
