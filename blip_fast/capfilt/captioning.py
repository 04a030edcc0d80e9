"""Synthetic captions by nucleus sampling (paper section 3.3), each from a seed of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from blip_fast.capfilt.settings import ScoreSettings
from blip_fast.data.tokens import strings_of
from blip_fast.generation import Options, generate, prompts_of
from blip_fast.generation.decode import check_max_length
from blip_fast.models import BlipCaptioner
from blip_fast.models.captioner import without_prompts


def sample_seed(seed: int, key: str) -> int:
    """Seed of a sample's captions, 62 bits: a function of the run's seed and the sample's key alone."""
    digest = hashlib.sha256(f"{seed}\n{key}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "little") >> 2


def check_lengths(captioner: BlipCaptioner, settings: ScoreSettings) -> None:
    """Raises ValueError where ``max_length`` is more than the captioner has positions for, or leaves none after the prompt."""
    check_max_length(settings.max_length, captioner.config)
    tokens = len(captioner.tokenizer(strings_of([settings.prompt])).input_ids[0]) - 1  # [SEP] is cut off
    if tokens >= settings.max_length:
        raise ValueError(f"prompt={settings.prompt!r} has {tokens} tokens with [DEC]; expected fewer than "
                         f"max_length={settings.max_length}")  # fmt: skip


def sample_captions(
    captioner: BlipCaptioner,
    states: Tensor,
    seeds: Sequence[int],
    settings: ScoreSettings,
) -> list[list[str]]:
    """``num_captions`` captions without the prompt for each image, states (B, L, vit_width)."""
    options = Options(
        max_length=settings.max_length,
        min_length=settings.min_length,
        do_sample=True,
        top_p=settings.top_p,
        top_k=settings.top_k,
        num_return_sequences=settings.num_captions,
        seed=seeds,
    )
    prompt = torch.tensor(captioner.tokenizer(settings.prompt).input_ids, device=states.device)
    prompts = prompts_of(prompt, len(states), captioner.config)
    generated = generate(captioner.text_decoder, states, prompts, options, captioner.config)
    captions = without_prompts(captioner.tokenizer, generated, [settings.prompt] * len(generated.ids))
    each = settings.num_captions
    return [captions[image * each : (image + 1) * each] for image in range(len(seeds))]
