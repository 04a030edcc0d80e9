"""Captioning: a text decoder that looks at the image."""

from __future__ import annotations

import torch
from torch import Tensor

from blip_fast.checkpoints.pretrained import PretrainedModel
from blip_fast.config import BlipConfig
from blip_fast.outputs import CaptionOutput
from blip_fast.reference.decoder import DecodingSession, TextDecoder, lm_labels, lm_loss
from blip_fast.reference.generation import (
    SAMPLING_REPETITION_PENALTY,
    Decoder,
    LengthNorm,
    Limits,
    beam_search,
    single_path,
)
from blip_fast.reference.text import with_first_token
from blip_fast.reference.vit import VisionTransformer


class BlipCaptioner(PretrainedModel):
    """Image encoder and image-grounded text decoder."""

    head = "caption"

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        self.visual_encoder = VisionTransformer(config)
        self.text_decoder = TextDecoder(config)

    def forward(
        self, image: Tensor, input_ids: Tensor, attention_mask: Tensor, prompt_length: int = 4
    ) -> CaptionOutput:
        """Language-modelling loss of captions.

        Args:
            image: (B, 3, S, S) normalised images.
            input_ids: (B, N) ids of prompt and caption, [CLS] first, right-padded with 0.
            attention_mask: (B, N), 1 for tokens and 0 for padding.
            prompt_length: that many first positions are no targets ([CLS] and the prompt).
        """
        decoder_ids = with_first_token(input_ids, self.config.dec_token_id)
        logits = self.text_decoder(decoder_ids, attention_mask, self.visual_encoder(image))
        labels = lm_labels(decoder_ids, self.config.pad_token_id, prompt_length)
        return CaptionOutput(lm_loss(logits, labels, self.config.label_smoothing))

    @torch.no_grad()
    def generate(
        self,
        images: Tensor,
        prompt: str = "a picture of ",
        num_beams: int = 3,
        max_length: int = 20,
        min_length: int = 5,
        *,
        do_sample: bool = False,
        top_p: float = 0.9,
        repetition_penalty: float | None = None,
        length_norm: LengthNorm = "published",
    ) -> list[str]:
        """Captions without the prompt; see :meth:`generate_ids`."""
        tokenizer = self.tokenizer
        ids = self.generate_ids(
            images,
            torch.tensor(tokenizer(prompt).input_ids),
            num_beams,
            max_length,
            min_length,
            do_sample=do_sample,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            length_norm=length_norm,
        )
        return [text[len(prompt) :] for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]

    @torch.no_grad()
    def generate_ids(
        self,
        images: Tensor,
        prompt_ids: Tensor,
        num_beams: int = 3,
        max_length: int = 20,
        min_length: int = 5,
        *,
        do_sample: bool = False,
        top_p: float = 0.9,
        top_k: int = 50,
        repetition_penalty: float | None = None,
        length_norm: LengthNorm = "published",
    ) -> Tensor:
        """Ids (B, n <= max_length) that begin with [DEC] and the prompt, filled up with padding behind [SEP].

        Args:
            images: (B, 3, S, S) normalised images.
            prompt_ids: (N,) or (B, N) ids as the tokenizer returns them: [CLS] or [DEC] first; [SEP] at the end is
                dropped.
            num_beams: beam width; 1 is greedy search.
            max_length, min_length: limits of the whole text, [DEC] and prompt included.
            do_sample: draw from the nucleus of probability ``top_p`` within the ``top_k`` best tokens.
            repetition_penalty: None means 1.1 when sampling and 1 (no penalty) otherwise, as published.
            length_norm: how beam search compares lengths, see :func:`beam_search`.
        """
        if repetition_penalty is None:
            repetition_penalty = SAMPLING_REPETITION_PENALTY if do_sample else 1.0
        config = self.config
        limits = Limits(max_length, min_length, config.sep_token_id, config.pad_token_id, repetition_penalty)
        start = start_ids(prompt_ids, images.shape[0], config).to(images.device)
        if start.shape[1] >= max_length:
            raise ValueError(f"max_length={max_length} leaves no room behind a start of {start.shape[1]} tokens")
        copies = 1 if do_sample else num_beams
        session = self.decoding_session(images, copies, max_length)
        if copies == 1:
            return single_path(session, start, limits, top_p if do_sample else None, top_k)
        return beam_search(session, start, limits, num_beams, length_norm)[0]

    def decoding_session(self, images: Tensor, copies: int, max_length: int) -> Decoder:
        """Decoding of ``copies`` texts per image, of ``max_length`` tokens at most."""
        return DecodingSession(self.text_decoder, self.visual_encoder(images).repeat_interleave(copies, dim=0))


def start_ids(prompt_ids: Tensor, batch: int, config: BlipConfig) -> Tensor:
    """[DEC] and the prompt without [SEP], (B, n), from prompt ids (N,) or (B, N) as the tokenizer returns them."""
    if prompt_ids.ndim not in (1, 2) or (prompt_ids.ndim == 2 and prompt_ids.shape[0] != batch):
        raise ValueError(f"prompt_ids has shape {tuple(prompt_ids.shape)}; expected (N,) or (B, N) with B={batch}")
    rows = prompt_ids.expand(batch, -1)
    if not bool(((rows[:, 0] == config.cls_token_id) | (rows[:, 0] == config.dec_token_id)).all()):
        raise ValueError(f"prompt_ids starts with {rows[:, 0].tolist()}; expected [CLS]={config.cls_token_id} or "
                         f"[DEC]={config.dec_token_id}")  # fmt: skip
    if bool((rows[:, -1] == config.sep_token_id).all()):
        rows = rows[:, :-1]
    return with_first_token(rows, config.dec_token_id)
