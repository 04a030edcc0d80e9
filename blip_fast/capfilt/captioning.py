"""Synthetic captions by nucleus sampling (paper section 3.3), each from a seed of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from blip_fast.capfilt.settings import ScoreSettings
from blip_fast.models import BlipCaptioner
from blip_fast.models.decoding import DecodingSession


class StatesCaptioner(BlipCaptioner):
    """A captioner whose "images" are states (B, L, vit_width): they are encoded already."""

    def decoding_session(self, images: Tensor, copies: int, max_length: int) -> DecodingSession:
        """Decoding of ``copies`` texts per image."""
        return DecodingSession(self.text_decoder, images, copies, max_length)

    def generate_ids(
        self,
        images,
        prompt_ids,
        num_beams=1,
        max_length=20,
        min_length=5,
        *,
        do_sample,
        top_p,
        top_k,
        num_return_sequences,
        seed,
    ):  # TEMP
        from blip_fast.reference.captioner import start_ids
        from blip_fast.reference.generation import Limits, nucleus_probabilities, process_scores
        from blip_fast.reference.philox import philox, uniform

        n, cfg = num_return_sequences, self.config
        limits = Limits(max_length, min_length, cfg.sep_token_id, cfg.pad_token_id, 1.1)
        ids = start_ids(prompt_ids, len(images), cfg).repeat_interleave(n, 0)
        seeds = torch.tensor(seed).repeat_interleave(n)
        copy = torch.arange(n).repeat(len(images))
        session = self.decoding_session(images, n, max_length)
        open_rows, tokens = torch.ones(len(ids), dtype=torch.bool), ids
        with torch.no_grad():
            while ids.shape[1] < max_length and open_rows.any():
                probs = nucleus_probabilities(process_scores(session.step(tokens).float(), ids, limits), top_p, top_k)
                u = uniform(philox(seeds, copy, torch.tensor(ids.shape[1]), 0, 0)[0])
                tokens = (
                    (probs.cumsum(-1) <= u[:, None] * probs.sum(-1, keepdim=True)).sum(-1).clamp(max=probs.shape[1] - 1)
                )
                tokens = tokens.masked_fill(~open_rows, cfg.pad_token_id)[:, None]
                open_rows &= tokens[:, 0] != cfg.sep_token_id
                ids = torch.cat([ids, tokens], 1)
        return ids


def sample_seed(seed: int, key: str) -> int:
    """Seed of a sample's captions, 62 bits: a function of the run's seed and the sample's key alone."""
    digest = hashlib.sha256(f"{seed}\n{key}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "little") >> 2


def sample_captions(
    captioner: StatesCaptioner,
    tokenizer: PreTrainedTokenizerBase,
    states: Tensor,
    seeds: Sequence[int],
    settings: ScoreSettings,
) -> list[list[str]]:
    """``num_captions`` captions without the prompt for each image, states (B, L, vit_width)."""
    ids = captioner.generate_ids(
        states,
        torch.tensor(tokenizer(settings.prompt).input_ids),
        max_length=settings.max_length,
        min_length=settings.min_length,
        do_sample=True,
        top_p=settings.top_p,
        top_k=settings.top_k,
        num_return_sequences=settings.num_captions,
        seed=list(seeds),
    )
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    captions = [text[len(settings.prompt) :].strip() for text in texts]
    each = settings.num_captions
    return [captions[image * each : (image + 1) * each] for image in range(len(seeds))]
