"""Counts of what went in, what was kept and what was rejected why, which must add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

Record = dict[str, Any]
KINDS = ("web", "synthetic")


class Tally:
    """Counts of samples and of their texts.

    A sample is scored, or rejected as a whole: ``bad_entry``, ``no_picture``, ``broken_picture``, ``duplicate_key``,
    ``damaged_shard``. A text of a scored sample is kept, or dropped: ``empty``, ``repeated`` (a synthetic caption drawn
    twice for a picture), ``below_itc``, ``below_threshold``. Before the selection all other texts count as kept.
    ``long_texts``: web texts of which only the first words were read; ``without_text``: scored samples with no text left.
    """

    def __init__(self) -> None:
        self.samples: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.texts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
        self.dropped: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}

    def add(self, record: Record) -> None:
        """Count one sample's record."""
        self.samples["in"] += 1
        if "rejected" in record:
            self.rejected[record["rejected"]] += 1
            return
        self.samples["scored"] += 1
        self.samples["long_texts"] += record["web"].get("long", False)
        self.samples["without_text"] += not any("dropped" not in text for _, text in texts_of(record))
        for kind, text in texts_of(record):
            self.texts[kind]["in"] += 1
            if "dropped" in text:
                self.dropped[kind][text["dropped"]] += 1
            else:
                self.texts[kind]["kept"] += 1

    def to_dict(self) -> dict[str, Any]:
        """Nested counts, always with the same names at the top."""
        names = ("in", "scored", "without_text", "long_texts")
        samples = {name: self.samples[name] for name in names} | {"rejected": _sorted(self.rejected)}
        texts = {
            kind: {name: self.texts[kind][name] for name in ("in", "kept")} | {"dropped": _sorted(self.dropped[kind])}
            for kind in KINDS
        }
        return {"samples": samples, **texts}


def texts_of(record: Record) -> Iterable[tuple[str, Record]]:
    """(kind, text) of a scored sample: the web text, then the synthetic ones."""
    yield "web", record["web"]
    for text in record["synthetic"]:
        yield "synthetic", text


def add_up(counts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The sums of nested counts."""
    total: dict[str, Any] = {}
    for one in counts:
        for name, value in one.items():
            if isinstance(value, Mapping):
                total[name] = add_up([total.get(name, {}), value])
            else:
                total[name] = total.get(name, 0) + value
    return total


def check_counts(counts: Mapping[str, Any], read: int, num_captions: int) -> None:
    """RuntimeError unless every sample that was ``read`` and every text is accounted for."""
    samples = counts["samples"]
    expected = {
        "samples in": (samples["in"], read),
        "samples scored and rejected": (samples["scored"] + sum(samples["rejected"].values()), read),
        "web texts": (counts["web"]["in"], samples["scored"]),
        "synthetic texts": (counts["synthetic"]["in"], samples["scored"] * num_captions),
        **{
            f"{kind} texts kept and dropped": (
                counts[kind]["kept"] + sum(counts[kind]["dropped"].values()),
                counts[kind]["in"],
            )
            for kind in KINDS
        },
    }
    for name, (found, wanted) in expected.items():
        if found != wanted:
            raise RuntimeError(f"counts do not add up: {found} {name}, expected {wanted}; this is a bug in blip_fast")


def kept_texts(records: Iterable[Record]) -> int:
    """How many texts of decided records are kept."""
    return sum(text["kept"] for record in records if "rejected" not in record for _, text in texts_of(record))


def check_written(written: int, kept: int) -> None:
    """RuntimeError unless every kept text has become a pair."""
    if written != kept:
        raise RuntimeError(f"{written} pairs are written and {kept} are kept; this is a bug in blip_fast")


def _sorted(counter: Counter[str]) -> dict[str, int]:
    return dict(sorted(counter.items()))
