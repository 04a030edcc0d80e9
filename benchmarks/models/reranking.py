"""Retrieval re-ranking: matching scores of one image at 384 px with 256 captions, against the published evaluation.

The published code projects the image's keys and values anew for every caption, and pads captions to 35 tokens. Image states
are given: the image encoder runs once per image in either.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from benchmarks.captions import caption_lengths, padded_texts
from benchmarks.job import Case, Setting, Variant
from benchmarks.weights import same_weights
from blip_fast import models, reference
from blip_fast.config import BlipConfig
from blip_fast.reference.retrieval import rerank_texts
from blip_fast.reference.text import with_first_token

PLACE = 70
TOKENS = (384 // 16) ** 2 + 1
CANDIDATES = 256
PADDED_LENGTH = 35
NO_SHARING = "its class takes as many images as texts, so it would be the published evaluation over again"


def cases(setting: Setting) -> Iterable[Case]:
    """One image of the test set; with ``--full`` in the other precision too (bf16 on a GPU first)."""
    on_gpu = setting.device.type == "cuda"
    yield _case(torch.bfloat16 if on_gpu else torch.float32, setting.device)
    if on_gpu and not setting.quick:
        yield _case(torch.float32, setting.device)


def _case(dtype: torch.dtype, device: torch.device) -> Case:
    config = BlipConfig.base(queue_size=CANDIDATES)  # the queues are for training
    torch.manual_seed(0)
    published = reference.BlipRetrieval(config).to(device).eval()
    fast = same_weights(published, models.BlipRetrieval)

    def inputs(seed: int) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(seed)
        states = torch.randn(1, TOKENS, config.vit_width, generator=generator, device=device)
        sims = torch.rand(1, CANDIDATES, generator=generator, device=device)
        ids, mask = padded_texts(caption_lengths(CANDIDATES, seed), PADDED_LENGTH, config, seed)
        return sims, states, ids.to(device), mask

    def run_published(sims: Tensor, states: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        enc_ids = with_first_token(ids, config.enc_token_id)
        return rerank_texts(published, sims, states, enc_ids, mask.to(device), CANDIDATES)

    def run_fast(sims: Tensor, states: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        return models.rerank(fast, sims, states, ids, mask, CANDIDATES)[0]

    return Case(
        name=f"1 image, {CANDIDATES} captions, 384 px, {str(dtype).removeprefix('torch.')}",
        inputs=inputs,
        variants=[
            Variant("reference", run_published, role="baseline"),
            Variant("reference, autocast", run_published, context=...),
            Variant("transformers", run_published, unavailable=NO_SHARING),
            Variant("blip_fast", run_fast, role="ours"),
        ],
        tolerance=1e-5,
    )
