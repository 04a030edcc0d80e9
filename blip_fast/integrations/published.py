"""Scripts written for the published code: its package ``models``, with the published arguments, on this library.

After :func:`patch_published`, ``from models.blip import blip_decoder`` and so on work as in the published demo.
"""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from blip_fast.checkpoints import BERT_BASE, VIT_BASE, VIT_LARGE, load_bert, load_checkpoint, load_vit
from blip_fast.checkpoints.pretrained import PretrainedModel
from blip_fast.config import BlipConfig
from blip_fast.data.tokenizer import load_tokenizer
from blip_fast.data.tokens import PROMPT
from blip_fast.integrations.published_models import (
    NLVR,
    VQA,
    CalledTextEncoder,
    Captioner,
    FeatureExtractor,
    Matching,
    Pretrain,
    Retrieval,
)

MED_CONFIG, BERT_CONFIG = "configs/med_config.json", "configs/bert_config.json"  # published defaults, both BERT-base
Model = TypeVar("Model", bound=PretrainedModel)


def patch_published() -> None:
    """From here on ``from models.blip import blip_decoder`` and its like give the models of this module.

    Losses, texts and scores are the published ones; see :data:`FACTORIES` for the names. Layers are called as published in
    the retrieval model alone (``text_encoder``, for its evaluation), which is no faster than the published code.

    Raises RuntimeError where another package ``models`` is imported already.
    """
    package = MODULES["models"]
    if sys.modules.setdefault("models", package) is not package:
        raise RuntimeError("another package 'models' is imported already; expected patch_published() before it")
    sys.modules.update(MODULES)


def blip_decoder(pretrained: str = "", image_size: int = 384, prompt: str = PROMPT, **arguments: Any) -> Captioner:
    """A captioner: ``model(image, caption)``, ``model.generate(image, ...)``."""
    model = _built(Captioner, pretrained, {"image_size": image_size}, **arguments)
    model.prompt = prompt
    return model


def blip_feature_extractor(pretrained: str = "", image_size: int = 224, **arguments: Any) -> FeatureExtractor:
    """Features: ``model(image, caption, mode)``."""
    return _built(FeatureExtractor, pretrained, {"image_size": image_size}, **arguments)


def blip_itm(pretrained: str = "", image_size: int = 384, embed_dim: int = 256, **arguments: Any) -> Matching:
    """Matching: ``model(image, caption, match_head)``."""
    return _built(Matching, pretrained, {"image_size": image_size, "embed_dim": embed_dim}, **arguments)


def blip_vqa(pretrained: str = "", image_size: int = 480, **arguments: Any) -> VQA:
    """Question answering: ``model(image, question, ...)``."""
    return _built(VQA, pretrained, {"image_size": image_size}, **arguments)


def blip_nlvr(pretrained: str = "", image_size: int = 480, **arguments: Any) -> NLVR:
    """Reasoning about two images: ``model(image, text, targets, train)``."""
    return _built(NLVR, pretrained, {"image_size": image_size}, **arguments)


def blip_retrieval(
    pretrained: str = "",
    image_size: int = 384,
    embed_dim: int = 256,
    queue_size: int = 57600,
    momentum: float = 0.995,
    negative_all_rank: bool = False,
    **arguments: Any,
) -> Retrieval:
    """Retrieval: ``loss_ita, loss_itm = model(image, caption, alpha, idx)``."""
    sizes = dict(image_size=image_size, embed_dim=embed_dim, queue_size=queue_size, momentum=momentum)
    model = _built(Retrieval, pretrained, sizes, **arguments)
    model.negative_all_rank = negative_all_rank
    model.text_encoder.__class__ = CalledTextEncoder
    return model


def blip_pretrain(
    image_size: int = 224,
    vit: Literal["base", "large"] = "base",
    embed_dim: int = 256,
    queue_size: int = 57600,
    momentum: float = 0.995,
    med_config: str = BERT_CONFIG,
    **arguments: Any,
) -> Pretrain:
    """Pre-training, from a ViT trained on ImageNet and BERT: ``ita, itm, lm = model(image, caption, alpha)``."""
    sizes = dict(image_size=image_size, embed_dim=embed_dim, queue_size=queue_size, momentum=momentum)
    model = _built(Pretrain, "", sizes, med_config, vit, **arguments)
    load_vit(model, VIT_BASE if vit == "base" else VIT_LARGE)
    load_bert(model, BERT_BASE)
    return model


def init_tokenizer() -> Any:
    """BLIP's tokenizer, with the published ``enc_token_id``."""
    tokenizer: Any = load_tokenizer()
    tokenizer.enc_token_id = tokenizer.convert_tokens_to_ids("[ENC]")
    return tokenizer


def _built(
    model_class: type[Model],
    pretrained: str,
    sizes: dict[str, Any],
    med_config: str = MED_CONFIG,
    vit: Literal["base", "large"] = "base",
    vit_grad_ckpt: bool = False,
    vit_ckpt_layer: int = 0,
) -> Model:
    """A model in train mode, as published."""
    text = _text_values(med_config)
    model = model_class(BlipConfig.from_published({"vit": vit}, text, model_class.head, **sizes))
    if vit_grad_ckpt:
        encoder: Any = model.visual_encoder
        encoder.set_grad_checkpointing(True, vit_ckpt_layer)
    model.tokenizer = init_tokenizer()
    if pretrained:
        model.load_report = load_checkpoint(model, pretrained)
    return model


def _text_values(med_config: str) -> dict[str, Any] | None:
    """What a file says of the text model; None, for BERT-base, where it is a published default that is not there."""
    path = Path(med_config)
    if med_config in (MED_CONFIG, BERT_CONFIG) and not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"med_config={med_config!r} is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(
            f"med_config={med_config!r} holds a {type(values).__name__}; expected a mapping of names to values"
        )
    return values


FACTORIES: dict[str, tuple[Callable[..., Any], ...]] = {
    "blip": (blip_decoder, blip_feature_extractor, init_tokenizer),
    "blip_itm": (blip_itm,),
    "blip_vqa": (blip_vqa,),
    "blip_nlvr": (blip_nlvr,),
    "blip_retrieval": (blip_retrieval,),
    "blip_pretrain": (blip_pretrain,),
}


def _published_modules() -> dict[str, types.ModuleType]:
    """The published package and its modules by full name."""
    package = types.ModuleType("models", __doc__)
    package.__path__ = []
    modules = {"models": package}
    for name, factories in FACTORIES.items():
        module = modules[f"models.{name}"] = types.ModuleType(f"models.{name}", __doc__)
        module.__dict__.update({factory.__name__: factory for factory in factories})
        setattr(package, name, module)
    return modules


MODULES = _published_modules()
