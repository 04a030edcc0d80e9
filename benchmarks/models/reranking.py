"""Retrieval re-ranking: one image at 384 px against 256 captions, as published, with transformers, and with shared keys.

Published evaluation and transformers project the image's keys and values anew for every caption, and pad captions to 35
tokens. The image's states are given: the image encoder runs once per image in any case.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import torch
from torch import Tensor

from blip_fast import models, reference
from blip_fast.config import BlipConfig
from blip_fast.reference.retrieval import rerank_texts
from blip_fast.reference.text import with_first_token

from ..captions import caption_lengths, padded_texts
from ..job import Aim, Case, Setting, Variant
from ..peers.huggingface import HuggingFaceMatching
from ..weights import same_weights
from .counts import count_flops

PLACE = 70
TOKENS = (384 // 16) ** 2 + 1
PADDED_LENGTH = 35
AIMS = (Aim(3.0, over="reference"),)
TOLERANCE = {"cpu": 1e-5, "cuda": 2e-2}  # on a GPU all variants run in bf16


def cases(setting: Setting) -> Iterable[Case]:
    """A text encoder of two layers and 64 captions; with ``--full`` that of BLIP-base and 256."""
    yield _case(BlipConfig.base(text_layers=2, vit_depth=1), 64, setting.device)
    if not setting.quick:
        yield _case(BlipConfig.base(vit_depth=1), 256, setting.device)


def _case(config: BlipConfig, captions: int, device: torch.device) -> Case:
    torch.manual_seed(0)
    published = reference.BlipRetrieval(config).to(device).eval()
    fast = same_weights(published, models.BlipRetrieval)
    transformers = HuggingFaceMatching(published).to(device).eval()

    def inputs(seed: int) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(seed)
        states = torch.randn(1, TOKENS, config.vit_width, generator=generator, device=device)
        sims = torch.rand(1, captions, generator=generator, device=device)
        ids, mask = padded_texts(caption_lengths(captions, seed), PADDED_LENGTH, config, seed)
        return sims, states, ids.to(device), mask

    def run_published(sims: Tensor, states: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        enc_ids = with_first_token(ids, config.enc_token_id)
        return rerank_texts(published, sims, states, enc_ids, mask.to(device), captions)

    @torch.no_grad()
    def run_transformers(sims: Tensor, states: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        enc_ids = with_first_token(ids, config.enc_token_id)
        return transformers(enc_ids, mask.to(device), states.expand(captions, -1, -1))[None, :, 1] + sims

    def run_fast(sims: Tensor, states: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        return models.rerank(fast, sims, states, ids, mask, captions)[0]

    def precision() -> contextlib.AbstractContextManager[None]:
        return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")

    first = inputs(0)
    return Case(
        name=f"{config.text_layers} layers, 1 image, {captions} captions, 384 px",
        inputs=inputs,
        variants=[
            Variant("reference", run_published, role="baseline", context=precision),
            Variant("transformers", run_transformers, context=precision),
            Variant("blip_fast", run_fast, role="ours", context=precision),
        ],
        tolerance=TOLERANCE[device.type],
        flops=sum(count_flops(lambda: run_fast(*first)).values()),
        dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
        aims=AIMS,
        items=(captions, "pairs"),
        input_sets=2,
    )
