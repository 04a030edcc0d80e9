"""Captions as long as those of COCO, with random words."""

from __future__ import annotations

import torch
from torch import Tensor

from blip_fast.config import BlipConfig

# How many captions have how many tokens: 30,000 pictures of COCO val2014 (the subset on which text-to-image models are
# compared), one caption each, cleaned as for pre-training; BERT's WordPieces with [CLS] and [SEP], cut at 30.
# fmt: off
COCO_LENGTHS = {
    9: 136, 10: 3229, 11: 5256, 12: 6159, 13: 5336, 14: 3870, 15: 2419, 16: 1377, 17: 841, 18: 518, 19: 281,
    20: 159, 21: 111, 22: 82, 23: 52, 24: 46, 25: 29, 26: 22, 27: 28, 28: 13, 29: 6, 30: 30,
}
# fmt: on
MEAN_LENGTH = 13  # of that table, to two digits
PADDED_LENGTH = 30  # pre-training
FIRST_WORD = 1000  # smaller ids are special tokens and punctuation


def caption_lengths(count: int, seed: int) -> Tensor:
    """Lengths (count,) int64 drawn from `COCO_LENGTHS`, drawn again until their mean is 13 exactly."""
    generator = torch.Generator().manual_seed(seed)
    lengths, weights = (torch.tensor(list(values)) for values in (COCO_LENGTHS.keys(), COCO_LENGTHS.values()))
    while True:
        drawn = lengths[torch.multinomial(weights.double(), count, replacement=True, generator=generator)]
        if int(drawn.sum()) == MEAN_LENGTH * count:
            return drawn


def padded_texts(lengths: Tensor, width: int, config: BlipConfig, seed: int) -> tuple[Tensor, Tensor]:
    """Random ids and mask (S, width) on the CPU of texts of these lengths: [CLS], words, [SEP], padding."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(width) < lengths[:, None]).long()
    ids = torch.randint(FIRST_WORD, config.dec_token_id, mask.shape, generator=generator)
    ids[:, 0] = config.cls_token_id
    ids.scatter_(1, lengths[:, None] - 1, config.sep_token_id)
    return ids * mask, mask
