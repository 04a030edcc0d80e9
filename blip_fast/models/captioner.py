"""Captioning on the fused operations: packed captions in training, image keys projected once per image in decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from blip_fast.data.packing import PackedTexts
from blip_fast.data.tokens import PROMPT, strings_of
from blip_fast.generation import Generated, GeneratedIds, OptionArguments, Options, Prompts, generate, prompts_of
from blip_fast.models.strings import Texts, own_images, pack_texts
from blip_fast.models.text import AttentionDropout, LookAt, decoder_stream, run_layers, token_losses
from blip_fast.models.vit import image_states
from blip_fast.outputs import CaptionOutput
from blip_fast.reference.captioner import BlipCaptioner as ReferenceCaptioner

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from typing_extensions import Unpack


class BlipCaptioner(ReferenceCaptioner):
    """Image encoder and image-grounded text decoder."""

    def forward(
        self,
        image: Tensor,
        input_ids: Texts,
        attention_mask: Tensor | None = None,
        prompt_length: int = 4,
        prompt: str = PROMPT,
    ) -> CaptionOutput:
        """Language-modelling loss of captions. Arguments are the reference's; captions may come packed.

        They may also be strings without the prompt: ``prompt`` is put in front of each and tells ``prompt_length``.
        """
        if not isinstance(input_ids, (Tensor, PackedTexts)):
            input_ids = [prompt + caption for caption in strings_of(input_ids)]
            prompt_length = len(self.tokenizer(prompt).input_ids) - 1
        texts = pack_texts(input_ids, attention_mask, "caption", self, image.device)
        texts = texts.with_first_token(self.config.dec_token_id)
        states = image_states(self.visual_encoder, image)
        dropout = AttentionDropout.of(self, states.device)
        own = own_images(texts, image.shape[0], states.device)
        stream = decoder_stream(self.text_decoder, texts, own)
        layers = self.text_decoder.bert.encoder.layer
        (decoded,) = run_layers(layers, [stream], dropout, LookAt(states))
        labels = texts.next_tokens(prompt_length)
        return CaptionOutput(token_losses(self.text_decoder, decoded, labels, self.config.label_smoothing, "mean"))

    def generate(
        self,
        images: Tensor,
        prompt: str | Sequence[str] = PROMPT,
        num_beams: int = 3,
        max_length: int = 20,
        min_length: int = 5,
        *,
        return_scores: bool = False,
        **options: Unpack[OptionArguments],
    ) -> list[str] | list[Generated]:
        """Captions without the prompt; see :meth:`generate_ids`.

        Args:
            images: (B, 3, S, S) normalised images.
            prompt: what every caption begins with, or one prompt per image.
            num_beams, max_length, min_length, options: those of :class:`blip_fast.generation.Options`.
            return_scores: :class:`blip_fast.generation.Generated` with log-probabilities in place of strings.

        Returns:
            B * ``num_return_sequences`` captions, those of an image one behind the other.
        """
        prompts = strings_of([prompt]) * len(images) if isinstance(prompt, str) else strings_of(prompt)
        if len(prompts) != len(images):
            raise ValueError(
                f"prompt has {len(prompts)} texts for {len(images)} images; expected one, or one per image"
            )
        prompt_ids = self.tokenizer(prompts, padding="longest", return_tensors="pt").input_ids.to(images.device)
        result = self.generate_ids(images, prompt_ids, num_beams, max_length, min_length, return_scores=True, **options)
        assert isinstance(result, GeneratedIds)
        copies = len(result.ids) // len(prompts)
        texts = without_prompts(self.tokenizer, result, [text for text in prompts for _ in range(copies)])
        return result.with_texts(texts) if return_scores else texts

    def generate_ids(
        self,
        images: Tensor,
        prompt_ids: Tensor,
        num_beams: int = 3,
        max_length: int = 20,
        min_length: int = 5,
        *,
        return_scores: bool = False,
        **options: Unpack[OptionArguments],
    ) -> Tensor | GeneratedIds:
        """Ids (B * num_return_sequences, n <= max_length): [DEC], the prompt, the caption, padding behind [SEP].

        Args:
            images: (B, 3, S, S) normalised images.
            prompt_ids: (N,) or (B, N) ids as the tokenizer returns them: [CLS] or [DEC] first; [SEP] at the end is
                dropped. Prompts of different lengths are right-padded with 0.
            num_beams, max_length, min_length, options: those of :class:`blip_fast.generation.Options`.
            return_scores: ids and log-probabilities, :class:`blip_fast.generation.GeneratedIds`.

        Raises:
            ValueError: an option is out of range, a prompt leaves no room, or prompts do not begin with [CLS] or [DEC].
        """
        settings = Options(num_beams, max_length, min_length, **options)
        prompts = prompts_of(prompt_ids, len(images), self.config)
        with torch.no_grad():
            states = image_states(self.visual_encoder, images)
            result = generate(
                self.text_decoder, states, Prompts(*(part.to(images.device) for part in prompts)), settings, self.config
            )
        return result if return_scores else result.ids


def without_prompts(tokenizer: PreTrainedTokenizerBase, result: GeneratedIds, prompts: list[str]) -> list[str]:
    """The texts behind their prompts: as published, as many characters are cut off as the prompt has.

    A prompt with capitals or punctuation is another text, of another length, once it has been tokenised; that one and the
    blank behind it are cut off.
    """
    texts = tokenizer.batch_decode(result.ids, skip_special_tokens=True)
    heads = tokenizer.batch_decode(
        result.ids.masked_fill(result.generated, tokenizer.pad_token_id), skip_special_tokens=True
    )
    return [
        text[len(prompt) :] if head == prompt.rstrip() else text[len(head) :].lstrip()
        for text, prompt, head in zip(texts, prompts, heads, strict=True)
    ]
