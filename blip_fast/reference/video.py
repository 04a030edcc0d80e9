"""Videos without training on them (paper section 5.6): models for images see the states of all frames in one sequence.

Eight frames for retrieval and sixteen for questions, uniformly sampled (``blip_fast.data.video``). Neither the order of
frames nor their distance is told to the model. Both classes have the parameters and names of their image counterparts,
so that those checkpoints load.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_fast.reference.retrieval import BlipRetrieval
from blip_fast.reference.vqa import BlipVQA


class BlipVideoRetrieval(BlipRetrieval):
    """Retrieval between videos and texts with a model for images.

    Features and states of :meth:`encode_videos` take the place of those of images: in similarities with
    :meth:`encode_texts` and in re-ranking.
    """

    @torch.no_grad()
    def encode_videos(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (V, F, 3, S, S) -> states (V, F * L, vit_width) and normalised features (V, E).

        As published, a video's feature is the mean of its frames' projected class tokens, normalised thereafter.
        """
        states = states_of_frames(self.visual_encoder, frames)
        features = self.vision_proj(states[:, :, 0]).mean(1)
        return states.flatten(1, 2), F.normalize(features, dim=-1)


class BlipVideoQA(BlipVQA):
    """Question answering about videos with a model for images.

    Every method of :class:`BlipVQA` takes frames (B, F, 3, S, S) in place of images (B, 3, S, S).
    """

    def visual_states(self, image: Tensor) -> Tensor:
        """Frames (B, F, 3, S, S) -> states (B, F * L, vit_width) that questions look at."""
        return states_of_frames(super().visual_states, image).flatten(1, 2)


def states_of_frames(encode: Callable[[Tensor], Tensor], frames: Tensor) -> Tensor:
    """Frames (V, F, 3, S, S) -> states (V, F, L, vit_width), each frame by itself through an encoder of images."""
    if frames.ndim != 5 or frames.shape[1] < 1 or frames.shape[2] != 3:
        raise ValueError(f"frames has shape {tuple(frames.shape)}; expected (V, F, 3, S, S) with at least one frame")
    return encode(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
