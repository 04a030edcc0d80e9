"""Broken pictures and malformed lines: a few are counted and reported, many stop the run."""

from __future__ import annotations

from collections.abc import Iterable


class BadSamples:
    """The samples that could not be read so far, each once, in the order met; more than ``limit`` are an error."""

    def __init__(self, limit: int = 0) -> None:
        if limit < 0:
            raise ValueError(f"max_bad_samples={limit} must not be negative")
        self.limit = limit
        self.messages: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self.messages)

    def add(self, messages: Iterable[str]) -> None:
        """Count ``messages``, each naming a file and what is wrong with it. RuntimeError beyond the limit."""
        self.messages.update(dict.fromkeys(messages))
        if len(self.messages) > self.limit:
            raise RuntimeError(
                f"{len(self.messages)} samples cannot be read, more than max_bad_samples={self.limit}; the last: "
                f"{next(reversed(self.messages))}"
            )
