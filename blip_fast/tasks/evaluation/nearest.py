"""The baseline that any captioner must beat: copy the caption of the most similar training picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def nearest_pictures(pictures: Tensor, candidates: Tensor) -> list[int]:
    """For each of ``pictures`` (N, ...) the index of the candidate (M, ...) at the smallest distance between pixels."""
    return torch.cdist(pictures.flatten(1), candidates.flatten(1)).argmin(1).tolist()


def copied_captions(pictures: Tensor, candidates: Tensor, captions: Sequence[str]) -> list[str]:
    """The caption of each picture's nearest candidate."""
    if len(candidates) != len(captions):
        raise ValueError(f"captions has {len(captions)} texts for {len(candidates)} candidates; expected one for each")
    return [captions[index] for index in nearest_pictures(pictures, candidates)]
