"""Texts without padding: real tokens one after the other, with everything a layer must know about them.

A plan is exact where the lengths are on the host: from a CPU mask, or built by the data loader. From a mask on the device it
has room for all positions, so that nothing is read back; rows past the last token are never looked at.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from blip_fast.config import BlipConfig

IGNORED = -100


@dataclass(frozen=True)
class PackedTexts:
    """S texts of at least one token each in T rows. The host knows T, S and ``max_length``, nothing else.

    Attributes:
        input_ids: (T,) token ids, or rows of ``words``; rows from ``cu_seqlens[-1]`` on are fill.
        positions: (T,) position of each token in its text.
        cu_seqlens: (S + 1,) int32; text s has the rows ``cu_seqlens[s]`` to ``cu_seqlens[s + 1]``.
        max_length: upper bound of the lengths.
        exact: whether there is no fill.
        words: (W, width) embeddings to begin with; None: those of the model that the texts go through.
    """

    input_ids: Tensor
    positions: Tensor
    cu_seqlens: Tensor
    max_length: int
    exact: bool
    words: Tensor | None = None

    def __len__(self) -> int:
        return self.count

    @property
    def count(self) -> int:
        """S, which `torch.export` may leave open; `len` makes a number of it."""
        return self.cu_seqlens.shape[0] - 1

    @property
    def first_rows(self) -> Tensor:
        """(S,) row of each text's first token."""
        return self.cu_seqlens[:-1].long()

    def pin_memory(self) -> PackedTexts:
        """The same texts in page-locked memory."""
        return replace(
            self,
            input_ids=self.input_ids.pin_memory(),
            positions=self.positions.pin_memory(),
            cu_seqlens=self.cu_seqlens.pin_memory(),
        )

    def with_first_token(self, token_id: int) -> PackedTexts:
        """The same texts, the first token replaced by the task's: [ENC] or [DEC] in place of [CLS]."""
        return replace(self, input_ids=self.input_ids.index_fill(0, self.first_rows, token_id))

    def with_capacity(self, rows: int, max_length: int) -> PackedTexts:
        """The same texts in ``rows`` rows, the last of them fill, with an upper bound of lengths given by the caller.

        Batches then have one shape, whatever their lengths: for CUDA graphs and compiled code.
        """
        fill = rows - self.input_ids.shape[0]
        if fill < 0 or max_length < self.max_length:
            raise ValueError(
                f"rows={rows}, max_length={max_length} for {self.input_ids.shape[0]} rows and texts of up to "
                f"{self.max_length} tokens; expected at least as many"
            )
        ids, positions = F.pad(self.input_ids, (0, fill)), F.pad(self.positions, (0, fill))
        return replace(self, input_ids=ids, positions=positions, max_length=max_length, exact=self.exact and fill == 0)

    def next_tokens(self, prompt_length: int = 0) -> Tensor:
        """(T,) label of each row: the token after it; -100 in fill, at the end of a text, and for prompt and [PAD]."""
        following_rows = torch.arange(1, self.input_ids.shape[0] + 1, device=self.input_ids.device, dtype=torch.int32)
        text = torch.searchsorted(self.cu_seqlens[1:], following_rows).clamp(max=self.count - 1)
        ends = self.cu_seqlens[1:].index_select(0, text) <= following_rows
        following = self.input_ids.roll(-1)
        # as published, [PAD] is no target even where the mask counts it as a token
        return following.masked_fill(
            ends | (following == BlipConfig.pad_token_id) | (self.positions + 1 < prompt_length), IGNORED
        )

    def padded_rows(self) -> Tensor:
        """(S, max_length) row of each token; some row of the batch behind the end of a text."""
        columns = torch.arange(self.max_length, device=self.cu_seqlens.device)
        return (self.first_rows[:, None] + columns).clamp(max=self.input_ids.shape[0] - 1)

    def padded_mask(self) -> Tensor:
        """(S, max_length), True for tokens and False behind the end of a text."""
        columns = torch.arange(self.max_length, device=self.cu_seqlens.device)
        return columns < self.cu_seqlens.diff()[:, None]

    def unpack(self, values: Tensor) -> Tensor:
        """Rows (T, ...) -> (S, max_length, ...), 0 behind the end of each text."""
        rows, mask = self.padded_rows(), self.padded_mask()
        padded = values.index_select(0, rows.flatten()).unflatten(0, rows.shape)
        return padded * mask.view(*mask.shape, *(1,) * (values.dim() - 1)).to(values.dtype)

    def select(self, index: Tensor, capacity: int) -> PackedTexts:
        """Texts ``index`` (n,), in that order; ``capacity`` rows, unless the index is on the CPU and tells how many."""
        chosen = self.cu_seqlens.diff().index_select(0, index)
        cu_seqlens = F.pad(chosen.cumsum(0), (1, 0)).to(torch.int32)
        exact = _on_host(index)
        if exact:
            capacity = int(cu_seqlens[-1])
        rows = torch.arange(capacity, device=index.device, dtype=torch.int32)
        text = torch.searchsorted(cu_seqlens[1:], rows, right=True).clamp(max=index.shape[0] - 1)
        shift = self.first_rows.index_select(0, index) - cu_seqlens[:-1]
        source = (rows + shift.index_select(0, text)).clamp(max=self.input_ids.shape[0] - 1)
        ids, positions = self.input_ids.index_select(0, source), self.positions.index_select(0, source)
        return PackedTexts(ids, positions, cu_seqlens, self.max_length, exact, self.words)


def join_texts(first: PackedTexts, second: PackedTexts) -> PackedTexts:
    """Text s of ``first``, then text s of ``second`` without its first token, as one text each."""
    if len(first) != len(second):
        raise ValueError(f"first has {len(first)} texts and second {len(second)}; expected as many")
    texts = torch.arange(len(first) + 1, device=first.cu_seqlens.device, dtype=torch.int32)
    cu_seqlens = first.cu_seqlens + second.cu_seqlens - texts
    capacity = first.input_ids.shape[0] + second.input_ids.shape[0] - len(first)
    rows = torch.arange(capacity, device=texts.device, dtype=torch.int32)
    text = torch.searchsorted(cu_seqlens[1:], rows, right=True).clamp(max=len(first) - 1)
    positions = rows - cu_seqlens.index_select(0, text)
    behind = positions - first.cu_seqlens.diff().index_select(0, text)
    from_first = first.cu_seqlens.index_select(0, text) + positions
    from_second = second.cu_seqlens.index_select(0, text) + behind + 1
    ids = torch.where(
        behind < 0,
        first.input_ids.index_select(0, from_first.clamp(max=first.input_ids.shape[0] - 1)),
        second.input_ids.index_select(0, from_second.clamp(0, second.input_ids.shape[0] - 1)),
    )
    max_length = first.max_length + second.max_length - 1
    return PackedTexts(ids, positions.clamp(max=max_length - 1), cu_seqlens, max_length, first.exact and second.exact)


def pack(input_ids: Tensor | PackedTexts, attention_mask: Tensor | None = None) -> PackedTexts:
    """Pack padded texts; packed ones are returned as they are.

    Args:
        input_ids: (S, N) int64 ids.
        attention_mask: (S, N), 1 for tokens and 0 for padding. On the CPU (the ids may be elsewhere) the plan is exact;
            None: no padding.

    Raises:
        ValueError: the shapes differ; where the plan is exact, also if there is no text, or one without tokens.
    """
    if isinstance(input_ids, PackedTexts):
        return input_ids
    if input_ids.dim() != 2:
        raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}; expected (S, N)")
    texts, width = input_ids.shape
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    if attention_mask.shape != input_ids.shape:
        raise ValueError(f"attention_mask has shape {tuple(attention_mask.shape)}; expected {(texts, width)}")
    lengths = (attention_mask != 0).sum(1)
    capacity, max_length, exact = texts * width, width, _on_host(attention_mask)
    if exact:
        if not texts or not int(lengths.min()):
            raise ValueError(f"attention_mask has texts of {lengths.tolist()} tokens; expected at least one of each")
        capacity, max_length = int(lengths.sum()), int(lengths.max())
    # a stable sort brings the real tokens to the front, in order
    rows = (attention_mask == 0).flatten().to(torch.uint8).argsort(stable=True)[:capacity]
    rows = rows.to(input_ids.device, non_blocking=True)
    cu_seqlens = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32).to(input_ids.device, non_blocking=True)
    return PackedTexts(input_ids.flatten().long().index_select(0, rows), rows % width, cu_seqlens, max_length, exact)


def pack_lists(texts: Sequence[Sequence[int]]) -> PackedTexts:
    """Pack texts given as lists of token ids, at least one token each."""
    lengths = [len(text) for text in texts]
    if not lengths or not min(lengths):
        raise ValueError(
            f"texts have the lengths {lengths}; expected at least one text, and at least one token in each"
        )
    cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    positions = torch.cat([torch.arange(length) for length in lengths])
    return PackedTexts(torch.tensor([*itertools.chain(*texts)]), positions, cu_seqlens, max(lengths), exact=True)


def pad_lists(texts: Sequence[Sequence[int]], width: int | None = None) -> tuple[Tensor, Tensor]:
    """Ids and attention mask (S, N) int64 of texts given as lists of token ids, right-padded with 0 to ``width``.

    None pads to the longest. Raises ValueError where a text is longer.
    """
    longest = max(len(text) for text in texts)
    width = longest if width is None else width
    if longest > width:
        raise ValueError(f"texts have up to {longest} tokens; expected at most width={width}")
    input_ids = torch.tensor([[*text, *[0] * (width - len(text))] for text in texts])
    lengths = torch.tensor([len(text) for text in texts])
    return input_ids, (torch.arange(width) < lengths[:, None]).long()


def check_indices(name: str, indices: Tensor, count: int) -> None:
    """ValueError where (n,) ``indices`` are outside of [0, count), as far as that can be seen without waiting for a device."""
    if _on_host(indices) and bool(((indices < 0) | (indices >= count)).any()):
        raise ValueError(f"{name} is {indices.tolist()}; expected numbers from 0 to {count - 1}")


def _on_host(tensor: Tensor) -> bool:
    """Whether values may be read: on the CPU, and not while a graph is traced."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()
