"""Nucleus sampling (arXiv 1904.09751), each text from random numbers of its own.

Which number decides a token follows from the seed of the text's image, the number of the text among the image's texts, and
the token's position (Philox, counter based): not from the batch, and not from texts that ended before.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blip_fast.generation.greedy import grow
from blip_fast.generation.options import Options
from blip_fast.generation.prompts import Prompts
from blip_fast.generation.scores import GeneratedIds
from blip_fast.generation.session import DecodingSession
from blip_fast.generation.texts import Limits
from blip_fast.reference.philox import philox, uniform, word_on


def sample(session: DecodingSession, prompts: Prompts, limits: Limits, options: Options) -> GeneratedIds:
    """``session.copies`` texts drawn for each of B prompts."""
    seeds = image_seeds(options.seed, len(prompts.lengths)).to(prompts.ids.device)

    def choose(scores: Tensor, rows: Tensor, lengths: Tensor) -> Tensor:
        words = philox(seeds[rows // session.copies], lengths, rows % session.copies, 0, 0)
        return draw(scores, uniform(torch.as_tensor(words[0])), options.top_k, options.top_p, options.temperature)

    return grow(session, prompts, limits, choose)


def image_seeds(seed: int | Sequence[int] | None, images: int) -> Tensor:
    """(B,) int64 seeds of the images, see :class:`Options`.

    Raises ValueError where there are not as many as images.
    """
    if seed is None:
        return torch.randint(2**62, (images,))
    cpu = torch.device("cpu")
    if not isinstance(seed, Sequence):
        return word_on("seed", seed, cpu) + torch.arange(images)
    if len(seed) != images:
        raise ValueError(f"seed has {len(seed)} numbers for {images} images; expected one per image, or one number")
    return torch.cat([word_on("seed", number, cpu) for number in seed])


def draw(logits: Tensor, numbers: Tensor, top_k: int, top_p: float, temperature: float) -> Tensor:
    """Tokens (R,) drawn by numbers (R,) in [0, 1) from logits (R, V).

    Of the ``top_k`` best tokens (0: all), the fewest that reach ``top_p`` together; the likeliest first along [0, 1).
    """
    best = (logits / temperature).topk(min(top_k, logits.shape[1]) or logits.shape[1], dim=-1)
    cumulative = best.values.softmax(dim=-1).cumsum(dim=-1)
    size = (cumulative <= top_p).sum(dim=-1, keepdim=True).clamp(max=cumulative.shape[1] - 1)
    threshold = numbers[:, None] * cumulative.gather(1, size)
    place = torch.minimum((cumulative <= threshold).sum(dim=-1, keepdim=True), size)
    return best.indices.gather(1, place)[:, 0]
