"""Decoding steps of fixed shapes and addresses, and their CUDA graph.

On a GPU the launches of a step's many small kernels cost more than the kernels; the replay of a graph is one launch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blip_fast.generation.prompts import Prompts
from blip_fast.generation.session import DecodingSession
from blip_fast.reference.decoder import TextDecoder

WARMUP_STEPS = 1  # more would cost what a caption of 20 tokens gains


class StaticSession(DecodingSession):
    """A session whose steps all do the same work in the same places.

    A step looks at all ``max_length`` places of the cache and masks those that are not written; tokens, lengths and ancestry
    are written in place; texts that end are computed on, and their logits left out.
    """

    def __init__(self, decoder: TextDecoder, states: Tensor, copies: int, max_length: int) -> None:
        super().__init__(decoder, states, copies, max_length)
        self.live = self.slots
        self.tokens = torch.zeros_like(self.slots)

    def restart(self, states: Tensor) -> None:
        """Begin anew with other states of the same shape."""
        for layer, kept in zip(self.layers, self.projected, strict=True):
            for place, projected in zip(kept, self.project(layer.crossattention.self, states), strict=True):
                place.copy_(projected)
        self.cache.zero_()  # a NaN of another batch stays one behind the mask
        self.live = self.slots
        self.ancestry.copy_(self.slots[:, None].expand_as(self.ancestry))

    def prefill(self, prompts: Prompts) -> Tensor:
        logits = super().prefill(prompts)
        self.longest, self.uniform = self.ancestry.shape[1], False
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        """Append tokens to the texts that were kept; returns the logits of their next tokens, until the next step."""
        self.tokens[self.live] = tokens
        logits = self.compute_all()
        self.lengths.add_(1).clamp_(max=self.longest - 1)  # a text that has ended shall not leave its slot
        return logits if self.live is self.slots else logits.index_select(0, self.live)

    def compute_all(self) -> Tensor:
        """Logits (B * copies, V) after ``self.tokens``."""
        return self.compute(self.tokens)

    def reorder(self, parents: Tensor) -> None:
        """Let kept text r continue kept text ``parents[r]``."""
        everyone = self.slots.clone()
        everyone[self.live] = self.live.index_select(0, parents)
        super().reorder(everyone)

    def keep(self, rows: Tensor) -> None:
        """Go on with texts ``rows`` of those that were kept."""
        self.live = self.live.index_select(0, rows)


class GraphedSession(StaticSession):
    """A static session on a GPU that captures its first step and replays it."""

    graph: torch.cuda.CUDAGraph | None = None

    def compute_all(self) -> Tensor:
        if self.graph is None:
            self.capture()
        assert self.graph is not None
        self.graph.replay()
        return self.logits

    def capture(self) -> None:
        """Record a step; it reads tokens, lengths and ancestry where they lie, and writes the cache at these lengths."""
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):  # capture requires a warmed-up side stream
            for _ in range(WARMUP_STEPS):
                self.compute(self.tokens)
        torch.cuda.current_stream(self.device).wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        # Threads that pin the next pictures' memory must not spoil the capture.
        with torch.cuda.graph(self.graph, stream=side, capture_error_mode="thread_local"):
            self.logits = self.compute(self.tokens)
