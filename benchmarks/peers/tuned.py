"""The published models in training as an engineer tunes them in a day with what torch has.

Attention through `scaled_dot_product_attention`, the momentum update in one foreach call, and `torch.compile` of what is
computed often: a layer of each kind, the embeddings, both losses. (Compiling the whole model takes minutes and joins nothing
but layers.) The step around it adds bf16 autocast on a GPU, and the fused AdamW. Texts stay padded, and every pass projects
its own image keys and values.
"""

from __future__ import annotations

import functools
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_fast.reference import BlipPretrain, BlipRetrieval
from blip_fast.reference.attention import merge_heads, split_heads
from blip_fast.reference.decoder import LanguageHead, lm_labels, lm_loss
from blip_fast.reference.momentum_model import MomentumModel
from blip_fast.reference.text import AttentionCore, KeyValueCache, TextEmbeddings, TextLayer, with_first_token
from blip_fast.reference.vit import Block, SelfAttention

from ..weights import same_weights


class TunedAttentionCore(AttentionCore):
    """Attention of the text encoder and decoder."""

    def forward(
        self, hidden: Tensor, states: Tensor, mask: Tensor | None, cache: KeyValueCache | None = None
    ) -> Tensor:
        query = split_heads(self.query(hidden), self.heads)
        key, value = split_heads(self.key(states), self.heads), split_heads(self.value(states), self.heads)
        dropout_p = self.dropout_p if self.training else 0.0
        return merge_heads(F.scaled_dot_product_attention(query, key, value, mask, dropout_p))


class TunedSelfAttention(SelfAttention):
    """Attention of the image encoder."""

    def forward(self, hidden: Tensor) -> Tensor:
        batch, length, width = hidden.shape
        qkv = self.qkv(hidden).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(merge_heads(F.scaled_dot_product_attention(query, key, value)))


class TunedMomentumModel(MomentumModel):
    """Encoders with momentum copies, which move in one call."""

    @torch.no_grad()
    def update_momentum(self) -> None:
        params_m, params = zip(*self.momentum_pairs(), strict=True)
        torch._foreach_lerp_(params_m, [param.detach() for param in params], 1.0 - self.config.momentum)


class TunedRetrieval(TunedMomentumModel, BlipRetrieval):
    """Retrieval fine-tuning with the same parameters, names and losses."""

    contrastive = torch.compile(BlipRetrieval.contrastive, dynamic=False)


class TunedPretrain(TunedMomentumModel, BlipPretrain):
    """Pre-training with the same parameters, names and losses."""

    contrastive = torch.compile(BlipPretrain.contrastive, dynamic=False)

    def language_loss(self, image_embeds: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        decoder_ids = with_first_token(input_ids, self.config.dec_token_id)
        hidden = self.text_decoder.hidden_states(decoder_ids, attention_mask, image_embeds)
        labels = lm_labels(decoder_ids, self.config.pad_token_id)
        return head_loss(self.text_decoder.cls, hidden, labels, self.config.label_smoothing)


Model = TypeVar("Model", TunedPretrain, TunedRetrieval)


def tuned(model: MomentumModel, model_class: type[Model]) -> Model:
    """A tuned model on the weights of ``model``, which is of the class that ``model_class`` tunes."""
    classes = {AttentionCore: TunedAttentionCore, SelfAttention: TunedSelfAttention}
    result = same_weights(model, model_class)
    for module in result.modules():
        module.__class__ = classes.get(type(module), type(module))
        if isinstance(module, (Block, TextLayer, TextEmbeddings)):
            module.forward = torch.compile(module.forward, dynamic=False)  # type: ignore[method-assign]
    return result


@functools.partial(torch.compile, dynamic=False)
def head_loss(head: LanguageHead, hidden: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """Mean loss of hidden states (B, N, width) against labels (B, N)."""
    return lm_loss(head(hidden), labels, label_smoothing)
