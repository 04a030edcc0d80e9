"""Rows of packed texts grouped by the image that they attend to: made once per batch, used by every cross-attention."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class RowGroups(NamedTuple):
    """Which rows attend to which image, in tables of fixed shapes (S texts, T rows, B images), all int32.

    Rows without an image (past the last text, of a text whose image is outside [0, B), or masked) form group B: they attend
    to nothing.
    """

    cu_seqlens: Tensor  # (S + 1): text s holds rows cu_seqlens[s] to cu_seqlens[s + 1]
    image_of_text: Tensor  # (S)
    rows: Tensor  # (T): row numbers, image by image, in ascending order within an image
    bounds: Tensor  # (B + 2): group b is rows[bounds[b]:bounds[b + 1]]
    text_of_row: Tensor  # (T): S where the row is past the last text or masked
    tiles: Tensor  # (tiles, 2): group and first place in `rows` of tiles of `tile_rows` rows; group B + 1: unused tile


def tile_rows(tokens: int, images: int) -> int:
    """Rows per tile for GPU kernels: about as many as an image has, a power of two from 16 to 128."""
    images = max(images, 1)
    return next((size for size in (16, 32, 64) if tokens <= size * images), 64 if tokens <= 256 * images else 128)


def group_rows(
    cu_seqlens: Tensor, image_of_text: Tensor, tokens: int, images: int, keep: Tensor | None = None
) -> RowGroups:
    """Group the rows of packed texts by image, on their device, without synchronisation.

    Args:
        cu_seqlens: (S + 1,) int32 or int64, ascending from 0; the last entry may be less than ``tokens``.
        image_of_text: (S,) int32 or int64.
        tokens: T, rows of the packed buffer.
        images: B.
        keep: (T,) bool, rows that attend; None: all.
    """
    device, texts = cu_seqlens.device, image_of_text.shape[0]
    row = torch.arange(tokens, device=device, dtype=torch.int32)
    cu_seqlens, image_of_text = (tensor.to(torch.int32).contiguous() for tensor in (cu_seqlens, image_of_text))
    text_of_row = torch.searchsorted(cu_seqlens[1:], row, right=True, out_int32=True)
    if keep is not None:
        text_of_row = text_of_row.masked_fill(~keep, texts)
    outside = (image_of_text < 0) | (image_of_text >= images)
    nowhere = torch.full((1,), images, dtype=torch.int32, device=device)
    group = torch.cat([image_of_text.masked_fill(outside, images), nowhere])[text_of_row]
    ordered, rows = torch.sort(group, stable=True)
    bounds = torch.searchsorted(ordered, torch.arange(images + 2, device=device, dtype=torch.int32), out_int32=True)
    tiles = _tiles(bounds, tokens, images)
    return RowGroups(cu_seqlens, image_of_text, rows.to(torch.int32), bounds, text_of_row, tiles)


def _tiles(bounds: Tensor, tokens: int, images: int) -> Tensor:
    size = tile_rows(tokens, images)
    capacity = min(tokens, tokens // size + images + 1)
    tiles_before = torch.nn.functional.pad(((bounds.diff() + size - 1) // size).cumsum(0), (1, 0))
    tile = torch.arange(capacity, device=bounds.device)
    group = torch.searchsorted(tiles_before[1:].contiguous(), tile, right=True)
    first = bounds[group] + (tile - tiles_before[group]) * size
    return torch.stack([group, first], dim=1).to(torch.int32)
