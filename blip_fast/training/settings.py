"""Settings of every program: the keys of the published YAML files with their values as defaults, and our own keys."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from blip_fast.checkpoints import BERT_BASE, VIT_BASE, VIT_LARGE
from blip_fast.config import BlipConfig, nearest

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class RunSettings(BaseModel):
    """What all programs share. The first group is published, the second our own; none of its defaults changes results.

    Attributes:
        vit: size of the image encoder.
        vit_grad_ckpt, vit_ckpt_layer: whether the last so many of its blocks are computed again in the backward pass.
        pretrained: checkpoint to start from: a path, an address, a published name or a Hugging Face id; "" for none.

        model: fields of `BlipConfig` that shall differ from what the program builds, by name.
        precision: "fp32" as published, or autocast to "bf16" or "fp16" (with loss scaling) over fp32 weights.
        tf32: let GPUs round the factors of fp32 matrix products to 10 bits (faster; the published runs did not).
        numerics: "published" keeps what looks like mistakes in published evaluation; "sane" does not.
        deterministic: only algorithms that repeat to the bit on a GPU, where torch has them (slower).
        recompute: what ``vit_grad_ckpt`` computes again: "full", as published, or "selective", which keeps products.
        compile: mode of `torch.compile` ("default", "reduce-overhead" with CUDA graphs, "max-autotune"); "" for none.
        cuda_graph: run whole steps of pre-training as CUDA graphs, on one GPU: texts then have room for a few tokens more.
        accumulate: batches per optimizer step. Queues take in every batch; momentum copies move once a step.
        clip_norm: largest norm of all gradients together; 0 does not clip, as published.
        strategy: "ddp" has a copy of everything on each rank; "fsdp" shards weights, momentum copies and optimizer state.
        workers: processes of each rank that load data.
        pixels: "published" resizes pictures as PIL does, "fast" quicker with values off by at most 1 of 255.
        max_bad_samples: unreadable pictures and lines that are skipped and counted before the run stops.
        max_steps: optimizer steps after which the run ends early; 0 for none.
        log_every: steps between two lines on a console that is no terminal.
        save_every_steps: optimizer steps between two resume states; 0 saves them at the end of epochs only.
        keep_last: how many ``checkpoint_NN.pth`` are kept, the newest; 0 keeps all, as published.
        tensorboard: whether to write events for TensorBoard into ``output_dir/tensorboard``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    vit: Literal["base", "large"] = "base"
    vit_grad_ckpt: bool = False
    vit_ckpt_layer: NonNegative = 0
    image_size: Positive = 384
    pretrained: str = ""

    model: dict[str, Any] = {}
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    tf32: bool = False
    numerics: Literal["published", "sane"] = "published"
    deterministic: bool = False
    recompute: Literal["full", "selective"] = "full"
    compile: Literal["", "default", "reduce-overhead", "max-autotune"] = ""
    cuda_graph: bool = False
    accumulate: Positive = 1
    clip_norm: Rate = 0.0
    strategy: Literal["ddp", "fsdp"] = "ddp"
    workers: NonNegative = 4
    pixels: Literal["published", "fast"] = "published"
    max_bad_samples: NonNegative = 100
    max_steps: NonNegative = 0
    log_every: Positive = 50
    save_every_steps: NonNegative = 0
    keep_last: NonNegative = 0
    tensorboard: bool = True

    # The model's task (`BlipConfig.from_published`), which decides the published drop path.
    head: ClassVar[str]

    @field_validator("model")
    @classmethod
    def _known_fields(cls, values: dict[str, Any]) -> dict[str, Any]:
        known = [field.name for field in dataclasses.fields(BlipConfig)]
        for name in values:
            if name not in known:
                raise ValueError(f"has no field '{name}'{nearest(name, known)}")
        return {name: model_value(name, value) for name, value in values.items()}

    def blip_config(self) -> BlipConfig:
        """The model that the published program builds with these settings."""
        return BlipConfig.from_published(self.model_dump(), head=self.head, **self.model)


class Decay(RunSettings):
    """Of programs that train.

    Attributes:
        passes_per_epoch: passes over the samples that count as one epoch, each in its own order; for small sets.
        crop_share: smallest share of a picture's area in a training crop; None: as published, 0.2 in pre-training, else 0.5.
        flip: mirror half of the pictures in training, as published; False where captions tell left from right.
        rand_augment: the published random operations on training pictures.
    """

    passes_per_epoch: Positive = 1
    crop_share: Annotated[float, Field(gt=0, le=1)] | None = None
    flip: bool = True
    rand_augment: bool = True

    weight_decay: Rate = 0.05
    init_lr: Rate = 1e-5
    min_lr: Rate = 0.0
    max_epoch: Positive = 1


class Generation(RunSettings):
    """Of programs that write captions. Lengths count the prompt, as published."""

    max_length: Positive = 20
    min_length: NonNegative = 5
    num_beams: Positive = 3
    prompt: str = "a picture of "


class PretrainSettings(Decay):
    """Pre-training (``pretrain.yaml``).

    Attributes:
        train_file: annotation files, JSON lists of {image, caption}.
        laion_path: folder of further lists, of which each epoch takes one; "" for none.
        shards: webdataset tar files, beside the lists or in their place: names with braces ("web-{000..127}.tar") or wildcards.
        image_root: pictures are read from below it and nowhere else; published lists hold full paths, which "/" allows.
        init_vit, init_bert: what the encoders start from; "" starts them at random. Not used with ``pretrained``.
    """

    head: ClassVar[str] = "pretrain"

    train_file: list[str] = []
    laion_path: str = ""
    shards: list[str] = []
    image_root: str = "/"
    image_size: Positive = 224
    batch_size: Positive = 75
    queue_size: Positive = 57600
    alpha: Share = 0.4
    init_lr: Rate = 3e-4
    min_lr: Rate = 1e-6
    warmup_lr: Rate = 1e-6
    lr_decay_rate: Rate = 0.9
    warmup_steps: NonNegative = 3000
    max_epoch: Positive = 20

    init_vit: str | None = None
    init_bert: str = BERT_BASE

    @property
    def vit_source(self) -> str:
        """What the image encoder starts from; the published choice of this size unless ``init_vit`` says otherwise."""
        published = VIT_BASE if self.vit == "base" else VIT_LARGE
        return published if self.init_vit is None else self.init_vit


class RetrievalSettings(Decay):
    """Retrieval fine-tuning (``retrieval_coco.yaml``, ``retrieval_flickr.yaml``)."""

    head: ClassVar[str] = "retrieval"

    image_root: str = ""
    ann_root: str = "annotation"
    dataset: Literal["coco", "flickr"] = "coco"
    batch_size_train: Positive = 32
    batch_size_test: Positive = 64
    vit_grad_ckpt: bool = True
    vit_ckpt_layer: NonNegative = 4
    queue_size: Positive = 57600
    alpha: Share = 0.4
    k_test: Positive = 256
    negative_all_rank: bool = True
    max_epoch: Positive = 6


class CaptionSettings(Decay, Generation):
    """Caption fine-tuning (``caption_coco.yaml``).

    Attributes:
        coco_gt_root: folder of the true captions; "" takes those in the annotation files, which are the same.
        java_metrics: compute METEOR, SPICE and the published tokenisation where there is Java.
    """

    head: ClassVar[str] = "caption"

    image_root: str = ""
    ann_root: str = "annotation"
    coco_gt_root: str = "annotation/coco_gt"
    batch_size: Positive = 32
    max_epoch: Positive = 5

    java_metrics: bool = True


class VQASettings(Decay):
    """Visual question answering (``vqa.yaml``)."""

    head: ClassVar[str] = "vqa"

    vqa_root: str = ""
    vg_root: str = ""
    train_files: list[str] = ["vqa_train", "vqa_val", "vg_qa"]
    ann_root: str = "annotation"
    batch_size_train: Positive = 16
    batch_size_test: Positive = 32
    image_size: Positive = 480
    init_lr: Rate = 2e-5
    k_test: Positive = 128
    inference: Literal["rank", "generate"] = "rank"
    max_epoch: Positive = 10


class NLVRSettings(Decay):
    """NLVR2 (``nlvr.yaml``)."""

    head: ClassVar[str] = "nlvr"

    image_root: str = ""
    ann_root: str = "annotation"
    batch_size_train: Positive = 16
    batch_size_test: Positive = 64
    init_lr: Rate = 3e-5
    max_epoch: Positive = 15


class NoCapsSettings(Generation):
    """Captions for NoCaps (``nocaps.yaml``)."""

    head: ClassVar[str] = "caption"

    image_root: str = ""
    ann_root: str = "annotation"
    batch_size: Positive = 32


class VideoRetrievalSettings(RunSettings):
    """Zero-shot retrieval of videos (``retrieval_msrvtt.yaml``)."""

    head: ClassVar[str] = "retrieval"

    video_root: str = ""
    ann_root: str = "annotation"
    batch_size: Positive = 64
    k_test: Positive = 128
    num_frm_test: Positive = 8


def model_value(name: str, value: Any) -> Any:
    """A field of `BlipConfig` as the number that it is there: 1e-12 is text to PyYAML. ValueError where it is none.

    True and False, which would be 1 and 0, are left to `BlipConfig`, which refuses them.
    """
    kind = get_type_hints(BlipConfig)[name]
    try:
        return value if isinstance(value, bool) else TypeAdapter(kind).validate_python(value)
    except ValidationError:
        raise ValueError(f"has {name}={value!r}; expected a {'whole ' if kind is int else ''}number") from None
