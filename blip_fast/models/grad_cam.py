"""Where in an image a text finds its match: Grad-CAM (arXiv 1610.02391) of the matching head, as in BLIP's and ALBEF's demos.

On the reference path, which has attention probabilities; everything before the layer that is looked at goes without autograd.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blip_fast.reference.attention import attention_probabilities, merge_heads, padding_mask, split_heads
from blip_fast.reference.itm import BlipITM
from blip_fast.reference.text import TextAttention


@torch.inference_mode(False)  # whatever the caller is in
def match_heat_maps(
    model: BlipITM, image: Tensor, input_ids: Tensor, attention_mask: Tensor, layer: int | None = None
) -> Tensor:
    """Heat maps (S, N, rows, columns) fp32 of each token of each text over the patches of an image.

    max(0, d logit / d p) * p, averaged over heads: ``logit`` is the one of "match", p the cross-attention probability of
    token and patch in one layer. Rows of padding are 0.

    Args:
        model: in eval mode.
        image: (1, 3, S, S) for all texts, or (S, 3, S, S), normalised.
        input_ids, attention_mask: (S, N) texts that begin with [ENC] or, as published, [CLS].
        layer: whose cross-attention; None is layer 8 of 12, as published, or the one as deep in other models, but not the
            last, where nothing depends on other tokens than the first.

    Raises ValueError for a layer that the model has not.
    """
    layers = model.text_encoder.encoder.layer
    chosen = max(min(len(layers) * 8 // 12, len(layers) - 2), 0) if layer is None else layer
    if not 0 <= chosen < len(layers):
        raise ValueError(f"layer={layer}; expected a number from 0 to {len(layers) - 1}")
    with torch.no_grad():
        states = model.visual_encoder(image).expand(len(input_ids), -1, -1)
        hidden = model.text_encoder.embeddings(input_ids)
        attention_mask = attention_mask.to(hidden.device)
        mask = padding_mask(attention_mask, hidden.dtype)
        for module in layers[:chosen]:
            hidden = module(hidden, mask, states)
        hidden = layers[chosen].attention(hidden, hidden, mask)
        probabilities = cross_probabilities(layers[chosen].crossattention, hidden, states)
    with torch.enable_grad():
        probabilities = probabilities.detach().requires_grad_()
        cross = layers[chosen].crossattention
        value = split_heads(cross.self.value(states), cross.self.heads)
        hidden = cross.output(merge_heads(probabilities @ value), hidden)
        hidden = layers[chosen].output(layers[chosen].intermediate(hidden), hidden)
        for module in layers[chosen + 1 :]:
            hidden = module(hidden, mask, states)
        (gradient,) = torch.autograd.grad(model.itm_head(hidden[:, 0])[:, 1].sum(), probabilities)
    maps = (gradient.clamp(min=0) * probabilities.detach()).float().mean(1)[..., 1:]  # without the class token
    side = model.config.image_size // model.config.vit_patch
    return (maps * attention_mask[:, :, None]).unflatten(-1, (side, side))


def cross_probabilities(module: TextAttention, hidden: Tensor, states: Tensor) -> Tensor:
    """Attention probabilities (S, H, N, L) of hidden (S, N, width) over states (S, L, state_width)."""
    query = split_heads(module.self.query(hidden), module.self.heads)
    return attention_probabilities(query, split_heads(module.self.key(states), module.self.heads))
