"""Transformers' BLIP classes on the weights of ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from blip_fast import reference
from blip_fast.checkpoints.huggingface import hf_config, hf_name, hf_state
from blip_fast.data.tokens import cached_tokenizer

if TYPE_CHECKING:  # what captioning is measured with does not need CapFilt's dependencies
    from blip_fast.capfilt.settings import ScoreSettings


class HuggingFaceMatching(nn.Module):
    """Transformers' text encoder and the matching head, as its `BlipForImageTextRetrieval` puts them together."""

    def __init__(self, model: reference.BlipRetrieval | reference.BlipITM) -> None:
        super().__init__()
        from transformers.models.blip.configuration_blip import BlipTextConfig
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        config = BlipTextConfig(**hf_config(model.config, "retrieval")["text_config"])
        self.text_encoder = BlipTextModel(config, add_pooling_layer=False)
        weights = dict(model.text_encoder.named_parameters())
        self.text_encoder.load_state_dict(weights, strict=False, assign=True)
        self.itm_head = model.itm_head

    def forward(self, input_ids: Tensor, attention_mask: Tensor, states: Tensor) -> Tensor:
        """Logits (S, 2) of texts (S, N), each with its image's states (S, L, vit_width)."""
        image_mask = states.new_ones(states.shape[:2])
        hidden = self.text_encoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=states,
            encoder_attention_mask=image_mask,
        ).last_hidden_state
        return self.itm_head(hidden[:, 0])


class HuggingFaceCapFilt(nn.Module):
    """CapFilt as one writes it with transformers: `BlipForConditionalGeneration` and `BlipForImageTextRetrieval`."""

    def __init__(self, captioner: reference.BlipCaptioner, matching: reference.BlipITM) -> None:
        super().__init__()
        from transformers import BlipConfig, BlipForConditionalGeneration, BlipForImageTextRetrieval

        self.captioner = BlipForConditionalGeneration(BlipConfig(**hf_config(captioner.config, "caption")))
        self.matching = BlipForImageTextRetrieval(BlipConfig(**hf_config(matching.config, "itm")))
        for own, model in ((self.captioner, captioner), (self.matching, matching)):
            missing = own.load_state_dict(hf_state(model), strict=False).missing_keys
            assert all(name.endswith("position_ids") for name in missing), missing
        self.enc_token_id = matching.config.enc_token_id

    @torch.no_grad()
    def forward(
        self, images: Tensor, web_texts: Sequence[str], settings: ScoreSettings, as_documented: bool = False
    ) -> Tensor:
        """Matching probabilities (B, 2) of each image's web text and of the caption that is drawn for it."""
        tokenizer = cached_tokenizer()
        prompt = tokenizer([settings.prompt] * len(images), return_tensors="pt").to(images.device)
        ids = self.captioner.generate(
            pixel_values=images,
            input_ids=prompt.input_ids,
            attention_mask=prompt.attention_mask,
            do_sample=True,
            num_beams=1,
            top_p=settings.top_p,
            top_k=settings.top_k,
            repetition_penalty=1.1,
            max_length=settings.max_length,
            min_length=settings.min_length,
        )
        captions = [
            text[len(settings.prompt) :].strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)
        ]
        texts = [text for pair in zip(web_texts, captions, strict=True) for text in pair]
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=35, return_tensors="pt").to(images.device)
        tokens.input_ids[:, 0] = self.enc_token_id
        logits = self._per_pair(images, tokens) if as_documented else self._encoded_once(images, tokens)
        return logits.softmax(-1)[:, 1].view(-1, 2)

    def _per_pair(self, images: Tensor, tokens: Any) -> Tensor:
        pictures = images.repeat_interleave(2, dim=0)
        return self.matching(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, pixel_values=pictures, use_itm_head=True
        ).itm_score

    def _encoded_once(self, images: Tensor, tokens: Any) -> Tensor:
        states = self.matching.vision_model(pixel_values=images).last_hidden_state.repeat_interleave(2, dim=0)
        hidden = self.matching.text_encoder(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            encoder_hidden_states=states,
            encoder_attention_mask=states.new_ones(states.shape[:2]),
        ).last_hidden_state
        return self.matching.itm_head(hidden[:, 0])


def hugging_face_captioner(model: reference.BlipCaptioner) -> Any:
    """Transformers' `BlipForConditionalGeneration` on the parameters of ``model``."""
    from transformers import BlipForConditionalGeneration
    from transformers.models.blip.configuration_blip import BlipConfig

    captioner = BlipForConditionalGeneration(BlipConfig(**hf_config(model.config, "caption")))
    state = {hf_name(name): tensor for name, tensor in model.named_parameters(remove_duplicate=False)}
    missing, unexpected = captioner.load_state_dict(state, strict=False, assign=True)
    if unexpected or any("position_ids" not in name for name in missing):
        raise RuntimeError(f"transformers' captioner lacks {unexpected} and has {missing} besides")
    return captioner
