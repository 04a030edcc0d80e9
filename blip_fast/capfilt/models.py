"""Captioner and filter, loaded once, with one image encoder where both have the same."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from blip_fast.models import BlipCaptioner, BlipITM
from blip_fast.models.vit import image_states

# What an image encoder computes depends on these, beside its weights.
_ENCODER_FIELDS = ("image_size", "vit_patch", "vit_heads", "vit_layer_norm_eps")


@dataclasses.dataclass(frozen=True)
class CapFiltModels:
    """What a run computes with.

    Attributes:
        captioner, filter: in eval mode, on one device.
        shared: whether both image encoders have equal weights and sizes; then they are one module and run once.
    """

    captioner: BlipCaptioner
    filter: BlipITM
    shared: bool

    @property
    def image_sizes(self) -> list[int]:
        """Edge lengths in pixels at which the models want each picture, the captioner's first."""
        return [model.config.image_size for model in self.encoders]

    @property
    def encoders(self) -> list[BlipCaptioner | BlipITM]:
        """The models that encode images: one or both."""
        return [self.captioner] if self.shared else [self.captioner, self.filter]

    @torch.no_grad()
    def encode(self, images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """States (B, L, vit_width) for captioner and filter from images (B, 3, S, S), one tensor for each encoder."""
        states = [image_states(model.visual_encoder, image) for model, image in zip(self.encoders, images, strict=True)]
        if torch.is_autocast_enabled(images[0].device.type):  # the last norm gives float32, which nobody reads
            states = [state.to(torch.get_autocast_dtype(state.device.type)) for state in states]
        return states[0], states[-1]

    def fingerprint(self) -> str:
        """16 hexadecimal digits that stand for all weights."""
        digest = hashlib.sha256()
        for model in (self.captioner, self.filter):
            for name, tensor in sorted(model.state_dict().items()):
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()[:16]


def load_models(captioner: str, filter_: str, device: torch.device) -> CapFiltModels:
    """Load both models; see ``from_pretrained`` for what a checkpoint may be. Raises ValueError, FileNotFoundError."""
    return join_models(BlipCaptioner.from_pretrained(captioner).to(device), BlipITM.from_pretrained(filter_).to(device))


def join_models(captioner: BlipCaptioner, filter_: BlipITM) -> CapFiltModels:
    """Put models that are in memory together. Raises ValueError where one has no tokenizer of its vocabulary."""
    for name, model in (("captioner", captioner), ("filter", filter_)):
        if len(model.tokenizer) != model.config.vocab_size:
            raise ValueError(f"{name} has vocab_size={model.config.vocab_size} and a tokenizer of {len(model.tokenizer)} "
                             "entries; expected as many")  # fmt: skip
    shared = same_encoders(captioner, filter_)
    if shared:
        filter_.visual_encoder = captioner.visual_encoder
    return CapFiltModels(captioner.eval(), filter_.eval(), shared)


def same_encoders(first: BlipCaptioner, second: BlipITM) -> bool:
    """Whether both image encoders have equal weights and see pictures of the same size."""
    if any(getattr(first.config, name) != getattr(second.config, name) for name in _ENCODER_FIELDS):
        return False
    ours, theirs = first.visual_encoder.state_dict(), second.visual_encoder.state_dict()
    return ours.keys() == theirs.keys() and all(
        ours[name].shape == theirs[name].shape and torch.equal(ours[name], theirs[name]) for name in ours
    )
