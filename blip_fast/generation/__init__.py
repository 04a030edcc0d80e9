"""Text generation: static caches, greedy search, beam search, sampling, scores."""

from __future__ import annotations

from blip_fast.generation.options import Options
from blip_fast.generation.scores import Generated, Sequences

__all__ = ["Generated", "Options", "Sequences"]
