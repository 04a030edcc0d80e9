"""Transformers' BLIP classes on the weights of ours."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from blip_fast import reference
from blip_fast.checkpoints.huggingface import hf_config, hf_name


class HuggingFaceMatching(nn.Module):
    """Transformers' text encoder and the matching head, as its `BlipForImageTextRetrieval` puts them together."""

    def __init__(self, model: reference.BlipRetrieval) -> None:
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
