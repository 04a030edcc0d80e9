"""Image-text matching with a trained model, keys and values of an image shared by all texts that look at it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_fast.data.packing import check_indices
from blip_fast.models.strings import Texts, pack_texts
from blip_fast.models.text import AttentionDropout, LookAt, encoder_stream, run_layers
from blip_fast.models.vit import class_state, image_states
from blip_fast.reference.itm import BlipITM as ReferenceITM


class BlipITM(ReferenceITM):
    """Scores images against texts. As published, texts keep [CLS] as first token in both heads."""

    def itm(
        self,
        image: Tensor,
        input_ids: Texts,
        attention_mask: Tensor | None = None,
        image_of_text: Tensor | None = None,
    ) -> Tensor:
        """Logits (S, 2) of "no match" and "match" for each text.

        Args:
            image: (B, 3, S, S) normalised images.
            input_ids, attention_mask: (S, N) texts, [CLS] first; or packed texts, or strings.
            image_of_text: (S,) image of each text; None pairs image b with text b, or the only image with all texts.
        """
        texts = pack_texts(input_ids, attention_mask, "itm", self, image.device)
        if image_of_text is None:
            image_of_text = self._default_images(image.shape[0], texts.count, image.device)
        check_indices("image_of_text", image_of_text, image.shape[0])
        states = image_states(self.visual_encoder, image)
        dropout = AttentionDropout.of(self, image.device)
        stream = encoder_stream(self.text_encoder, texts, image_of_text)
        return self.itm_head(run_layers(self.text_encoder.encoder.layer, [stream], dropout, LookAt(states))[0])

    def itc(self, image: Tensor, input_ids: Texts, attention_mask: Tensor | None = None) -> Tensor:
        """Cosine similarities (B, S) of all images (B, 3, S, S) with all texts, ids and mask (S, N), or strings."""
        texts = pack_texts(input_ids, attention_mask, "itm", self, image.device)
        dropout = AttentionDropout.of(self, image.device)
        stream = encoder_stream(self.text_encoder, texts)
        (text_state,) = run_layers(self.text_encoder.encoder.layer, [stream], dropout)
        image_feat = F.normalize(self.vision_proj(class_state(self.visual_encoder, image)), dim=-1)
        return image_feat @ F.normalize(self.text_proj(text_state), dim=-1).t()

    @staticmethod
    def _default_images(images: int, texts: int, device: torch.device) -> Tensor:
        if images == 1:
            return torch.zeros(texts, dtype=torch.int64, device=device)
        if images != texts:
            raise ValueError(f"image has {images} images for {texts} texts; expected one, as many, or image_of_text")
        return torch.arange(texts, device=device)
