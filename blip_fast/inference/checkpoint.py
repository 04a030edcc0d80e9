"""The model that a command works with: what the caller names, the published one, or the one that the demo trained."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar

import torch

from blip_fast.checkpoints.heads import HEADS
from blip_fast.checkpoints.pretrained import PretrainedModel
from blip_fast.checkpoints.sources import locate
from blip_fast.generation import to_int8

PUBLISHED = {
    "caption": "model_base_caption_capfilt_large",
    "vqa": "model_base_vqa_capfilt_large",
    "itm": "model_base_retrieval_coco",
    "features": "model_base",
}
DEMO_FOLDER = Path("demo/model")  # where `blip-fast demo` leaves its model
Precision = Literal["fp32", "bf16", "fp16", "int8"]
_DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}

Model = TypeVar("Model", bound=PretrainedModel)


def choose_checkpoint(head: str, checkpoint: str | None) -> tuple[str, str | None]:
    """The checkpoint to load for a head and, where it is not the expected one, a sentence that says so.

    None is the published checkpoint of this head; where it is neither on this machine nor can be fetched, the model of
    the demo in the working folder. Raises FileNotFoundError where there is none of them.
    """
    if checkpoint is not None:
        return checkpoint, None
    name = PUBLISHED[head]
    try:
        return str(locate(name)), None
    except FileNotFoundError as error:
        if not DEMO_FOLDER.is_dir():
            raise FileNotFoundError(
                f"no checkpoint is given, the published {name} could not be fetched, and there is no {DEMO_FOLDER}; "
                "expected --checkpoint, or the model that `blip-fast demo` trains"
            ) from error
    return str(DEMO_FOLDER), (
        f"no checkpoint is given and the published {name} could not be fetched: using {DEMO_FOLDER}, a small model that "
        "`blip-fast demo` trained on drawings of emoji; what it says about photographs means nothing"
    )


def load_model(model_class: type[Model], checkpoint: str, device: torch.device, precision: Precision = "fp32") -> Model:
    """A model of this class from a checkpoint that was trained for its task.

    Precision "int8" is for captions and answers on a CPU, see :func:`to_int8 <blip_fast.generation.int8.to_int8>`.

    Raises what ``from_pretrained`` raises, and ValueError where parts of the model are untrained.
    """
    model = model_class.from_pretrained(checkpoint)
    # Pre-trained checkpoints fit a model for questions, which fine-tuning starts from them: it cannot answer yet.
    if model_class.head == "vqa" and model.trained_head != "vqa":
        found = f"a checkpoint of {HEADS[model.trained_head].class_name}" if model.trained_head else "of no known head"
        raise ValueError(f"{checkpoint} is {found} and has not learned to answer questions; expected one of BlipVQA")
    model = model.to(device, _DTYPES.get(precision, torch.float32))
    return to_int8(model) if precision == "int8" else model
