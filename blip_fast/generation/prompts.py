"""The beginnings of texts: [DEC] and a prompt, of any length each."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from blip_fast.config import BlipConfig


class Prompts(NamedTuple):
    """What B texts begin with: ids (B, N), [DEC] first, right-padded; and how many tokens each has, (B,) int64."""

    ids: Tensor
    lengths: Tensor

    def repeat(self, copies: int) -> Prompts:
        """Each prompt ``copies`` times, one behind the other."""
        return Prompts(self.ids.repeat_interleave(copies, dim=0), self.lengths.repeat_interleave(copies))


def prompts_of(prompt_ids: Tensor, batch: int, config: BlipConfig) -> Prompts:
    """[DEC] and prompts without [SEP], from ids (N,) for all texts or (B, N), as the tokenizer returns them.

    Padding (0) behind a prompt tells its length, so that prompts of one batch may differ in it.

    Raises ValueError where the shape is another, or a prompt does not begin with [CLS] or [DEC].
    """
    if prompt_ids.ndim not in (1, 2) or (prompt_ids.ndim == 2 and prompt_ids.shape[0] != batch):
        raise ValueError(f"prompt_ids has shape {tuple(prompt_ids.shape)}; expected (N,) or (B, N) with B={batch}")
    rows = prompt_ids.expand(batch, -1)
    first = rows[:, 0]
    if not bool(((first == config.cls_token_id) | (first == config.dec_token_id)).all()):
        raise ValueError(f"prompt_ids starts with {first.tolist()}; expected [CLS]={config.cls_token_id} or "
                         f"[DEC]={config.dec_token_id}")  # fmt: skip
    lengths = (rows != config.pad_token_id).sum(1)
    last = rows.gather(1, lengths[:, None] - 1)[:, 0]
    lengths = lengths - (last == config.sep_token_id).long()
    columns = torch.arange(int(lengths.max()), device=rows.device)
    ids = rows[:, : len(columns)].masked_fill(columns >= lengths[:, None], config.pad_token_id)
    return Prompts(ids.masked_fill(columns == 0, config.dec_token_id), lengths)
