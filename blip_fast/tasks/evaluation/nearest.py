"""The baseline of captioning: copy the caption of the training picture that looks most alike."""

from __future__ import annotations

import torch
from torch import Tensor

from blip_fast.data.pretrain import PretrainData
from blip_fast.tasks.metrics.exact import score_captions


def nearest_caption_scores(known: PretrainData, held_out: PretrainData) -> dict[str, float]:
    """Scores of captions copied from the nearest known picture, pixel by pixel."""

    def pixels(data: PretrainData) -> Tensor:
        return torch.stack([data[index].image for index in range(len(data))]).flatten(1)

    nearest = torch.cdist(pixels(held_out), pixels(known)).argmin(dim=1).tolist()
    return score_captions([known.captions[index] for index in nearest], held_out.captions)
