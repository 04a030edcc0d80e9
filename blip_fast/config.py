"""Sizes and hyper-parameters of a BLIP model (arXiv 2201.12086), shared by the reference and the fused path."""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

# Names of the published med_config, which transformers' text configuration shares, and the fields here.
TEXT_FIELDS = {
    "num_hidden_layers": "text_layers",
    "hidden_size": "text_width",
    "num_attention_heads": "text_heads",
    "intermediate_size": "text_intermediate",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_position_embeddings",
    "hidden_dropout_prob": "hidden_dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "layer_norm_eps": "text_layer_norm_eps",
    "label_smoothing": "label_smoothing",
}
# The same for transformers' vision configuration.
VISION_FIELDS = {
    "num_hidden_layers": "vit_depth",
    "hidden_size": "vit_width",
    "num_attention_heads": "vit_heads",
    "patch_size": "vit_patch",
    "image_size": "image_size",
    "layer_norm_eps": "vit_layer_norm_eps",
}
# What transformers means by a missing entry, where that is not the published model's value.
_TRANSFORMERS_DEFAULTS: dict[str, Any] = dict(
    text_heads=8,
    hidden_dropout=0.0,
    attention_dropout=0.0,
    label_smoothing=0.0,
    image_size=384,
    vit_layer_norm_eps=1e-5,
)
_TRANSFORMERS_MLP = 3072
_BERT_VOCABULARY = 30522
_HEADS_WITH_DROP_PATH = ("vqa", "nlvr")


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
        for field in dataclasses.fields(self):
            value, whole = getattr(self, field.name), field.type == "int"
            kind = numbers.Integral if whole else numbers.Real
            fits = isinstance(value, kind) and (1 if whole else 0) <= float(value) < math.inf
            if not fits or isinstance(value, bool):
                raise ValueError(
                    f"{field.name}={value!r}; expected a {'positive whole number' if whole else 'number >= 0'}"
                )
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
                raise ValueError(f"BlipConfig has no field '{name}'{nearest(name, known)}")
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

    @classmethod
    def from_published(
        cls,
        settings: Mapping[str, Any],
        med_config: Mapping[str, Any] | None = None,
        head: str | None = None,
        **overrides: Any,
    ) -> BlipConfig:
        """The model that a published training program builds.

        Args:
            settings: values of its YAML file, of which ``vit`` ("base" or "large"), ``image_size`` and ``queue_size``
                concern the model; the others steer training and are not looked at.
            med_config: values of its ``med_config.json`` or ``bert_config.json``; None means BERT-base. The two extra
                tokens are added to BERT's own vocabulary, as the programs do.
            head: the program's task; "vqa" and "nlvr" train with drop path 0.1 also for the base image encoder.
            overrides: fields to set otherwise.
        """
        vit = settings.get("vit", "base")
        if vit not in ("base", "large"):
            raise ValueError(f"vit={vit!r}; expected 'base' or 'large'")
        text = med_config or {}
        values = {name: settings[name] for name in ("image_size", "queue_size") if name in settings}
        values |= {ours: text[theirs] for theirs, ours in TEXT_FIELDS.items() if theirs in text}
        if values.get("vocab_size") == _BERT_VOCABULARY:
            values["vocab_size"] += 2
        values["drop_path"] = published_drop_path(head, large=vit == "large")
        build = cls.large if vit == "large" else cls.base
        return build(**(values | overrides))

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], **overrides: Any) -> BlipConfig:
        """The model that transformers builds from this ``config.json`` (as a dictionary) of one of its BLIP classes.

        Raises ValueError where the file asks for something that BLIP does not have.
        """
        text, vision = config.get("text_config") or {}, config.get("vision_config") or {}
        values = _TRANSFORMERS_DEFAULTS | {ours: text[theirs] for theirs, ours in TEXT_FIELDS.items() if theirs in text}
        values |= {ours: vision[theirs] for theirs, ours in VISION_FIELDS.items() if theirs in vision}
        for field in ("image_size", "vit_patch"):
            values[field] = _side(field, values.get(field, getattr(cls, field)))
        width = values.get("vit_width", cls.vit_width)
        values["vit_mlp_ratio"] = mlp_ratio(width, vision.get("intermediate_size", _TRANSFORMERS_MLP))
        values["embed_dim"] = config.get("image_text_hidden_size", cls.embed_dim)
        result = cls(**(values | overrides))
        result._refuse_other_models(text, vision)
        return result

    def _refuse_other_models(self, text: Mapping[str, Any], vision: Mapping[str, Any]) -> None:
        """ValueError where transformers' configuration differs in what is fixed here."""
        fixed: list[tuple[str, Mapping[str, Any], str, Any]] = [
            ("text_config", text, "hidden_act", "gelu"),
            ("text_config", text, "tie_word_embeddings", True),
            ("text_config", text, "bos_token_id", self.dec_token_id),
            ("text_config", text, "sep_token_id", self.sep_token_id),
            ("text_config", text, "pad_token_id", self.pad_token_id),
            ("vision_config", vision, "hidden_act", "gelu"),
        ]
        for section, values, name, expected in fixed:
            if values.get(name, expected) not in (expected, None):
                raise ValueError(f"{section} has {name}={values[name]!r}; BLIP needs {expected!r}")


def nearest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean ...?" where a known name is close, else nothing."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def published_drop_path(head: str | None, large: bool) -> float:
    """Drop path with which the published program of this task trains the base or the large image encoder."""
    return 0.1 if large or head in _HEADS_WITH_DROP_PATH else 0.0


def mlp_ratio(width: int, inner: int) -> float:
    """The ratio of an MLP of this inner width, such that ``int(width * ratio)``, as published, is that width again."""
    ratio = inner / width
    return ratio if int(width * ratio) == inner else math.nextafter(ratio, math.inf)


def _side(name: str, value: Any) -> int:
    """An edge length that transformers gives as a number or as a pair."""
    sides = {value} if isinstance(value, int) else set(value)
    if len(sides) != 1:
        raise ValueError(f"{name}={value!r}; expected a square")
    return int(sides.pop())
