"""Small models on both paths, and texts of random length for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from blip_fast.config import BlipConfig

SIZES: dict[str, Any] = dict(
    text_layers=2,
    text_width=32,
    text_heads=2,
    text_intermediate=64,
    vocab_size=300,
    max_position_embeddings=40,
    vit_width=32,
    vit_depth=2,
    vit_heads=2,
    vit_patch=8,
    image_size=16,
    embed_dim=8,
    queue_size=16,
    hidden_dropout=0.0,
    attention_dropout=0.0,
)


def pair(fused: type, reference: type, **overrides: Any) -> tuple[Any, Any]:
    """A fused and a reference model with the same random weights, none of a trivial value."""
    torch.manual_seed(0)
    config = BlipConfig(**(SIZES | overrides))
    first, second = fused(config), reference(config)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    first.load_state_dict(second.state_dict())
    return first, second


def texts(*shape: int, generator: int = 0) -> tuple[Tensor, Tensor]:
    """Ids and mask of texts with [CLS], 1 to N - 2 words and [SEP]; ``shape`` ends with N."""
    random = torch.Generator().manual_seed(generator)
    ids = torch.randint(110, 290, shape, generator=random)
    lengths = torch.randint(3, shape[-1] + 1, shape[:-1], generator=random)[..., None]
    columns = torch.arange(shape[-1])
    ids = ids.masked_fill(columns == 0, 101).masked_fill(columns == lengths - 1, 102).masked_fill(columns >= lengths, 0)
    return ids, (columns < lengths).long()


def assert_same_gradients(actual: nn.Module, expected: nn.Module) -> None:
    """Every parameter that one path trains has the same gradient on the other."""
    gradients = {name: parameter.grad for name, parameter in actual.named_parameters()}
    assert any(gradient is not None for gradient in gradients.values())
    for name, parameter in expected.named_parameters():
        assert (gradients[name] is None) == (parameter.grad is None), name
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)
