"""Sizes and hyper-parameters of a BLIP model (arXiv 2201.12086), shared by the reference and the fused path."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, ClassVar


@dataclasses.dataclass(frozen=True)
class BlipConfig:
    """Sizes of the image and the text transformer, and the settings that the model itself needs.

    The defaults are BLIP-base at 224 px. Token ids follow from the vocabulary: ``[DEC]`` is ``vocab_size - 2`` and
    ``[ENC]`` is ``vocab_size - 1``; the other special tokens have the ids of BERT's vocabulary.
    """

    pad_token_id: ClassVar[int] = 0
    cls_token_id: ClassVar[int] = 101
    sep_token_id: ClassVar[int] = 102  # ends a text

    text_layers: int = 12
    text_width: int = 768
    text_heads: int = 12
    text_intermediate: int = 3072
    vocab_size: int = 30524
    max_position_embeddings: int = 512
    vit_width: int = 768
    vit_depth: int = 12
    vit_heads: int = 12
    vit_mlp_ratio: float = 4
    vit_patch: int = 16
    image_size: int = 224
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    drop_path: float = 0.0
    embed_dim: int = 256
    queue_size: int = 57600
    momentum: float = 0.995
    label_smoothing: float = 0.1
    text_layer_norm_eps: float = 1e-12
    vit_layer_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        for width, heads in (("text_width", "text_heads"), ("vit_width", "vit_heads")):
            if getattr(self, width) % getattr(self, heads):
                raise ValueError(
                    f"{width}={getattr(self, width)} is not divisible by {heads}={getattr(self, heads)}; "
                    "every attention head needs the same number of channels"
                )
        if self.image_size % self.vit_patch:
            raise ValueError(
                f"image_size={self.image_size} is not divisible by vit_patch={self.vit_patch}; "
                "images are cut into whole patches"
            )

    @property
    def dec_token_id(self) -> int:
        """Id of ``[DEC]``, which starts a text in the decoder."""
        return self.vocab_size - 2

    @property
    def enc_token_id(self) -> int:
        """Id of ``[ENC]``, which starts a text in the image-grounded encoder."""
        return self.vocab_size - 1

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BlipConfig:
        """Build a configuration from a mapping of field names; an unknown name is an error."""
        known = {field.name for field in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean '{near[0]}'?" if near else ""
                raise ValueError(f"BlipConfig has no field '{name}'{hint}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """All fields as a plain dictionary: ``BlipConfig.from_dict(config.to_dict()) == config``."""
        return dataclasses.asdict(self)

    @classmethod
    def base(cls, **overrides: Any) -> BlipConfig:
        """BLIP with ViT-B/16, as published."""
        return cls(**overrides)

    @classmethod
    def large(cls, **overrides: Any) -> BlipConfig:
        """BLIP with ViT-L/16, as published (drop path 0.1)."""
        sizes: dict[str, Any] = dict(vit_width=1024, vit_depth=24, vit_heads=16, drop_path=0.1)
        return cls(**(sizes | overrides))

    @classmethod
    def tiny(cls, **overrides: Any) -> BlipConfig:
        """A model of about two million parameters plus embeddings, for tests and the demo."""
        sizes: dict[str, Any] = dict(
            text_layers=3,
            text_width=128,
            text_heads=4,
            text_intermediate=512,
            max_position_embeddings=64,
            vit_width=128,
            vit_depth=4,
            vit_heads=4,
            vit_patch=8,
            image_size=64,
            embed_dim=64,
            queue_size=1024,
        )
        return cls(**(sizes | overrides))
