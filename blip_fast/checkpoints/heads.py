"""The heads of BLIP as checkpoints know them: what tells them apart, and what a checkpoint may leave out."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Head:
    """One head.

    Attributes:
        name: how it is called on the command line.
        class_name: its class in ``blip_fast.models`` and ``blip_fast.reference``.
        signature: tensors by which its checkpoints are recognised, see :func:`head_of`.
        trained_anew: pattern of tensors that fine-tuning starts without, because pre-trained checkpoints lack them or
            hold them in another shape.
        hf_class: transformers' class for it, if there is one.
        refused: heads whose checkpoints have tensors of the same names that mean something else.
    """

    name: str
    class_name: str
    signature: tuple[str, ...]
    trained_anew: str = ""
    hf_class: str | None = None
    refused: tuple[str, ...] = ()


_ENCODER = "text_encoder.embeddings.word_embeddings.weight"
_DECODER = "text_decoder.cls.predictions.bias"
QUEUES = r"(image|text|idx)_queue|queue_ptr|ptr_queue"

# In the order in which signatures are looked for: the first that a checkpoint holds completely is its head.
HEADS = {
    head.name: head
    for head in (
        Head("retrieval", "BlipRetrieval", ("ptr_queue",), trained_anew=QUEUES),
        Head("pretrain", "BlipPretrain", ("queue_ptr",), trained_anew=QUEUES),
        Head(
            "nlvr", "BlipNLVR", ("cls_head.0.weight",), trained_anew=r"cls_head\..*|text_encoder\..*\.merge_layer\..*"
        ),
        Head(
            "vqa",
            "BlipVQA",
            (_ENCODER, _DECODER),
            # Pre-trained with a large image encoder the decoder looks at wider states than those of questions.
            trained_anew=r"text_decoder\..*\.crossattention\.self\.(key|value)\.weight",
            hf_class="BlipForQuestionAnswering",
        ),
        # A VQA decoder looks at states of questions, not of images.
        Head("caption", "BlipCaptioner", (_DECODER,), hf_class="BlipForConditionalGeneration", refused=("vqa",)),
        Head("itm", "BlipITM", ("itm_head.weight", "vision_proj.weight"), hf_class="BlipForImageTextRetrieval"),
        # Published checkpoints have no projection of captions, which a model of two widths needs.
        Head("visdial", "BlipVisDial", ("itm_head.weight",), trained_anew=r"caption_proj\..*"),
        Head("features", "BlipFeatureExtractor", (_ENCODER,)),
    )
}
# transformers' BlipModel has contrastive projections of its own, which no published checkpoint trains.
HF_CLASSES = {head.hf_class: head.name for head in HEADS.values() if head.hf_class} | {"BlipModel": "features"}


def head_of(names: Collection[str]) -> str | None:
    """The head to which a state_dict with these names belongs; None where it is no BLIP model."""
    return next((head.name for head in HEADS.values() if all(name in names for name in head.signature)), None)
