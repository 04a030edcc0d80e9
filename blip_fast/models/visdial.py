"""Visual dialogue on the fused operations: all answers to a question share the keys and values of image and caption."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blip_fast.data.packing import PackedTexts, join_texts
from blip_fast.data.tokens import dialogue_text, strings_of
from blip_fast.models.strings import Texts, pack_texts
from blip_fast.models.text import AttentionDropout, LookAt, encoder_stream, run_layers
from blip_fast.models.vit import image_states
from blip_fast.outputs import VisDialOutput
from blip_fast.reference.visdial import BlipVisDial as ReferenceVisDial


class BlipVisDial(ReferenceVisDial):
    """Image encoder, and a text encoder that reads captions by themselves and dialogues with image and caption.

    What of this is the paper's and what is read into it stands in `blip_fast.reference.visdial`.
    """

    def forward(
        self,
        image: Tensor,
        caption_ids: Texts,
        caption_mask: Tensor | None,
        dialogue_ids: Tensor | PackedTexts | Sequence[Sequence[str]],
        dialogue_mask: Tensor | None,
        answer_ids: Tensor | Sequence[Sequence[str]],
        answer_mask: Tensor | None,
        labels: Tensor | None = None,
        image_of_dialogue: Tensor | None = None,
    ) -> VisDialOutput:
        """Loss (with labels) and logits (B, C, 2) of "false" and "true". Arguments are the reference's.

        Captions and dialogues may come packed. As strings, ``caption_ids`` are I captions, ``dialogue_ids`` B lists of
        utterances up to the question, and ``answer_ids`` B lists of C answers.
        """
        device, config = image.device, self.config
        dropout = AttentionDropout.of(self, device)
        if not isinstance(dialogue_ids, (Tensor, PackedTexts)):
            dialogue_ids = [dialogue_text(utterances) for utterances in dialogue_ids]
        dialogues = pack_texts(dialogue_ids, dialogue_mask, "dialogue", self, device)
        answers = self.packed_answers(answer_ids, answer_mask, len(dialogues), device)
        count = len(answers) // len(dialogues)
        dialogue_of_answer = torch.arange(len(dialogues), device=device).repeat_interleave(count)
        repeated = dialogues.select(dialogue_of_answer, dialogues.input_ids.shape[0] * count)
        texts = join_texts(repeated, answers).with_first_token(config.enc_token_id)

        images = self.images_of(image_of_dialogue, len(image), len(dialogues), device)
        stream = encoder_stream(self.text_encoder, texts, images.repeat_interleave(count))
        captions = pack_texts(caption_ids, caption_mask, "caption", self, device)
        look = self.look_at(image, captions, dropout)
        (hidden,) = run_layers(self.text_encoder.encoder.layer, [stream], dropout, look)
        return self.output(self.itm_head(hidden).unflatten(0, (-1, count)), labels)

    def look_at(self, image: Tensor, captions: PackedTexts, dropout: AttentionDropout) -> LookAt:
        """Cross-attention to the states of images (I, 3, S, S), each followed by those of its caption."""
        if len(captions) != len(image):
            raise ValueError(f"caption_ids has {len(captions)} captions for {len(image)} images; expected as many")
        stream = encoder_stream(self.text_encoder, captions, first_only=False)
        (hidden,) = run_layers(self.text_encoder.encoder.layer, [stream], dropout)
        states = image_states(self.visual_encoder, image)
        caption_states = self.caption_proj(captions.unpack(hidden))
        lengths = captions.cu_seqlens.diff() + states.shape[1]
        return LookAt(torch.cat([states, caption_states], dim=1), lengths)

    def packed_answers(
        self,
        answer_ids: Tensor | Sequence[Sequence[str]],
        answer_mask: Tensor | None,
        dialogues: int,
        device: torch.device,
    ) -> PackedTexts:
        """Answers (B, C, M), or B lists of C strings, one dialogue after the other."""
        if isinstance(answer_ids, Tensor):
            self.answers_per_dialogue(answer_ids, dialogues)
            mask = None if answer_mask is None else answer_mask.flatten(0, 1)
            return pack_texts(answer_ids.flatten(0, 1), mask, "answer", self, device)
        answers = [strings_of(pool) for pool in answer_ids]
        counts = [len(pool) for pool in answers]
        if len(counts) != dialogues or len(set(counts)) != 1:
            raise ValueError(f"answer_ids has lists of {counts} answers; expected {dialogues} lists of equal length")
        return pack_texts([text for pool in answers for text in pool], answer_mask, "answer", self, device)
