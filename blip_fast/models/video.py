"""Videos without training on them (paper section 5.6) on the fused operations; see `blip_fast.reference.video`.

A video's many states are projected to keys and values once for all texts that look at it.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_fast.models.retrieval import BlipRetrieval
from blip_fast.models.vit import image_states
from blip_fast.models.vqa import BlipVQA
from blip_fast.reference.video import BlipVideoQA as ReferenceVideoQA
from blip_fast.reference.video import BlipVideoRetrieval as ReferenceVideoRetrieval
from blip_fast.reference.video import states_of_frames


class BlipVideoRetrieval(BlipRetrieval, ReferenceVideoRetrieval):
    """Retrieval between videos and texts with a model for images; :func:`rerank` takes its states and similarities."""

    @torch.no_grad()
    def encode_videos(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (V, F, 3, S, S) -> states (V, F * L, vit_width) and normalised features (V, E)."""
        states = states_of_frames(functools.partial(image_states, self.visual_encoder), frames)
        features = self.vision_proj(states[:, :, 0]).mean(1)
        return states.flatten(1, 2), F.normalize(features, dim=-1)


class BlipVideoQA(ReferenceVideoQA, BlipVQA):
    """Question answering about videos: methods take frames (B, F, 3, S, S) in place of images (B, 3, S, S)."""
