"""Tensor shapes of real models, for jobs that walk whole models without needing one."""

from __future__ import annotations

from blip_fast.config import BlipConfig

Shape = tuple[int, ...]


def momentum_shapes(config: BlipConfig) -> list[Shape]:
    """Shapes of the parameters that pre-training keeps a momentum copy of, in the model's order.

    They are those of the image encoder and its projection, then the text encoder and its projection: 223,450,880 parameters
    in 470 tensors for BLIP-base.
    """
    vit, text = config.vit_width, config.text_width
    image = _vit_shapes(config) + [(config.embed_dim, vit), (config.embed_dim,)]
    return image + _text_encoder_shapes(config) + [(config.embed_dim, text), (config.embed_dim,)]


def _vit_shapes(config: BlipConfig) -> list[Shape]:
    width, patch = config.vit_width, config.vit_patch
    hidden = int(width * config.vit_mlp_ratio)
    tokens = (config.image_size // patch) ** 2 + 1
    norm: list[Shape] = [(width,), (width,)]
    block = [*norm, *_linear(3 * width, width), *_linear(width, width), *norm]
    block += [*_linear(hidden, width), *_linear(width, hidden)]
    return [(1, 1, width), (1, tokens, width), (width, 3, patch, patch), (width,), *block * config.vit_depth, *norm]


def _text_encoder_shapes(config: BlipConfig) -> list[Shape]:
    width, hidden = config.text_width, config.text_intermediate
    norm: list[Shape] = [(width,), (width,)]
    self_attention = [*_linear(width, width) * 4, *norm]
    cross_attention = [*_linear(width, width), *_linear(width, config.vit_width) * 2, *_linear(width, width), *norm]
    mlp = [*_linear(hidden, width), *_linear(width, hidden), *norm]
    layer = [*self_attention, *cross_attention, *mlp]
    return [(config.vocab_size, width), (config.max_position_embeddings, width), *norm, *layer * config.text_layers]


def _linear(out_features: int, in_features: int) -> list[Shape]:
    return [(out_features, in_features), (out_features,)]
