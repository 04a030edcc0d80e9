"""A run's folder: which units are finished, and the steps from scores to the bootstrapped set.

    settings.json            what the scores depend on; a folder goes on only with the same
    scores/000000.jsonl      a record per sample of a unit; scores/000000.json: its counts, written last
    records/000000.jsonl     the same with decisions; records/000000.json: its counts, written last
    bootstrapped.json        the pairs to train on, or shards/*.tar
    manifest.json            all counts, written last of all

A unit without its counts is done again as a whole. No file is ever seen half-written.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from blip_fast.capfilt.json_list import write_list
from blip_fast.capfilt.outputs import check_human, human_pairs, kept_pairs, write_human_shard, write_shard
from blip_fast.capfilt.samples import root_of
from blip_fast.capfilt.selection import decide, read_records, threshold_of_fraction
from blip_fast.capfilt.settings import DEFAULT_THRESHOLD, CapFiltSettings, fingerprint
from blip_fast.capfilt.tally import KINDS, Record, Tally, add_up, check_counts, check_written, kept_texts
from blip_fast.capfilt.units import Unit, list_units
from blip_fast.checkpoints.files import write_atomically, write_json
from blip_fast.data.roots import Root

SETTINGS, MANIFEST, LIST = "settings.json", "manifest.json", "bootstrapped.json"
SCORES, RECORDS, SHARDS = "scores", "records", "shards"
HUMAN = "human-"


class Job:
    """All units of a run and where each stands.

    Raises ValueError where the folder holds a run with other inputs or settings, FileNotFoundError where inputs are missing.
    """

    def __init__(self, settings: CapFiltSettings, weights: str) -> None:
        self.settings, self.folder = settings, settings.output
        self.units = list_units(settings.images, settings.score.unit_size)
        if not self.units:
            raise ValueError(f"images={list(settings.images)} hold no entries")
        if settings.select.form == "list" and any(unit.is_shard for unit in self.units):
            raise ValueError("form='list' for pictures that lie in shards; expected form='shards'")
        if settings.image_root is not None:
            Root(settings.image_root)
        check_human(settings.human, settings.human_root)
        self.identity = {
            "score": settings.score.model_dump(mode="json"),
            "weights": weights,
            "units": fingerprint([unit.to_dict() for unit in self.units]),
            "image_root": None if settings.image_root is None else str(settings.image_root.resolve()),
        }
        self.fingerprint = fingerprint(self.identity)
        self._claim_folder()

    def _claim_folder(self) -> None:
        path = self.folder / SETTINGS
        if not path.exists():
            write_json(path, self.identity)
        found = json.loads(path.read_text(encoding="utf-8"))
        differing = [name for name in self.identity if found.get(name) != self.identity[name]]
        if differing:
            raise ValueError(f"output={str(self.folder)!r} holds a run with other {', '.join(differing)}; expected "
                             "another folder, or the same inputs and settings")  # fmt: skip

    def path(self, stage: str, unit: Unit, suffix: str) -> Path:
        """A unit's file in a stage."""
        return self.folder / stage / f"{unit.name}.{suffix}"

    def unscored(self, units: Iterable[Unit]) -> list[Unit]:
        """Those of the units that are still to be scored."""
        return [unit for unit in units if self._counts(SCORES, unit, self.fingerprint) is None]

    def clear_leftovers(self, units: Iterable[Unit]) -> None:
        """Remove what a killed process left half-written of these units and of the set; nobody may be at work on either."""
        names = {unit.name for unit in units}
        for stage in (SCORES, RECORDS, SHARDS):
            for path in (self.folder / stage).glob(".*"):
                name = path.name.split(".")[1]
                if name in names or name.startswith(HUMAN):
                    path.unlink(missing_ok=True)
        for name in (LIST, MANIFEST):
            for path in self.folder.glob(f".{name}.*"):
                path.unlink(missing_ok=True)

    def write_scores(self, unit: Unit, records: Iterable[Record]) -> dict[str, Any]:
        """Write a unit's scored records and return their counts."""
        return self._write_stage(SCORES, unit, records, self.fingerprint, unit.entries)

    def select(self, unit: Unit, threshold: float) -> dict[str, Any]:
        """Decide on a unit's texts and write them, as a shard too where asked; returns the counts."""
        form = self.settings.select.form
        mark = fingerprint(self.fingerprint, threshold, form)
        shard = self.path(SHARDS, unit, "tar")
        counts = self._counts(RECORDS, unit, mark) if form == "list" or shard.exists() else None
        if counts is None:
            # First of all, as it would vouch for a shard of another selection.
            self.path(RECORDS, unit, "json").unlink(missing_ok=True)
            scored = read_records(self.path(SCORES, unit, "jsonl"))
            decided = (decide(record, threshold) for record in scored)
            if form == "shards":
                decided = list(decided)  # type: ignore[assignment]
                check_written(write_shard(shard, unit, decided, self.settings.image_root), kept_texts(decided))
            scored_counts = self._counts(SCORES, unit, self.fingerprint)
            assert scored_counts is not None
            counts = self._write_stage(RECORDS, unit, decided, mark, scored_counts["samples"]["in"])
        return counts

    def threshold(self) -> float:
        """The probability from which on texts are kept; for a share of all texts every unit must be scored."""
        select = self.settings.select
        if select.keep_fraction is None:
            return DEFAULT_THRESHOLD if select.threshold is None else select.threshold
        return threshold_of_fraction(lambda: self.all_records(SCORES), select.keep_fraction)

    def all_records(self, stage: str) -> Iterator[Record]:
        """The records of all units in order."""
        return itertools.chain.from_iterable(read_records(self.path(stage, unit, "jsonl")) for unit in self.units)

    def finish(self, on_unit: Callable[[Unit, dict[str, Any]], None]) -> dict[str, Any]:
        """Once all units are scored: decide, write the bootstrapped set, and return the manifest. May be repeated."""
        threshold = self.threshold()
        self._remove_outdated()
        totals: dict[str, Any] = {}
        for unit in self.units:
            counts = self.select(unit, threshold)
            totals = add_up([totals, counts])
            on_unit(unit, counts)
        human: Counter[str] = Counter()
        kept = sum(totals[kind]["kept"] for kind in KINDS)
        if self.settings.select.form == "list":
            written, human_count = self._write_list(human)
            check_written(written, kept)
        else:
            human_count = self._write_human_shards(human)
        manifest = {
            "threshold": threshold,
            "select": self.settings.select.model_dump(mode="json"),
            **self.identity,
            "unit_count": len(self.units),
            **totals,
            "human": {"kept": human_count, "rejected": dict(sorted(human.items()))},
            "pairs": kept + human_count,
        }
        write_json(self.folder / MANIFEST, manifest)
        return manifest

    def _remove_outdated(self) -> None:
        """Remove what an earlier selection left, so that nobody takes it for this one's: first the manifest, then the rest."""
        shards, select = self.folder / SHARDS, self.settings.select
        outdated = [self.folder / LIST] if select.form == "shards" else shards.glob("*.tar")
        for path in [self.folder / MANIFEST, *outdated, *shards.glob(f"{HUMAN}*.tar")]:
            path.unlink(missing_ok=True)

    def _write_list(self, rejected: Counter[str]) -> tuple[int, int]:
        web, human = 0, 0

        def pairs() -> Iterator[dict[str, str]]:
            nonlocal web, human
            for unit in self.units:
                root = root_of(unit, self.settings.image_root)
                for pair in kept_pairs(read_records(self.path(RECORDS, unit, "jsonl")), root):
                    web += 1
                    yield pair
            for pair in human_pairs(self.settings.human, self.settings.human_root, rejected, follow_links=False):
                human += 1
                yield pair

        write_list(self.folder / LIST, pairs())
        return web, human

    def _write_human_shards(self, rejected: Counter[str]) -> int:
        pairs = human_pairs(self.settings.human, self.settings.human_root, rejected, follow_links=True)
        size, count = self.settings.score.unit_size, 0
        for number in itertools.count():
            part = list(itertools.islice(pairs, size))
            if not part:
                return count
            name = f"{HUMAN}{number:06d}"
            count += write_human_shard(self.folder / SHARDS / f"{name}.tar", part, name, rejected)
        raise AssertionError

    def _write_stage(
        self, stage: str, unit: Unit, records: Iterable[Record], mark: str, expected: int | None
    ) -> dict[str, Any]:
        """Write records and their counts, of which there are ``expected`` (None: as many as a shard holds)."""
        tally, lines = Tally(), 0

        def write(beside: Path) -> None:
            nonlocal lines
            with beside.open("w", encoding="utf-8") as file:
                for record in records:
                    if record["number"] != lines:
                        raise RuntimeError(f"sample {lines} of {unit} is lost; this is a bug in blip_fast")
                    file.write(json.dumps(record) + "\n")
                    tally.add(record)
                    lines += 1

        self.path(stage, unit, "json").unlink(missing_ok=True)
        write_atomically(self.path(stage, unit, "jsonl"), write)
        counts = tally.to_dict()
        check_counts(counts, lines if expected is None else expected, self.settings.score.num_captions)
        write_json(self.path(stage, unit, "json"), {"fingerprint": mark, "unit": unit.to_dict(), "counts": counts})
        return counts

    def _counts(self, stage: str, unit: Unit, mark: str) -> dict[str, Any] | None:
        """Counts of a unit that is finished in this stage; None where it is not, or belongs to other settings."""
        try:
            found = json.loads(self.path(stage, unit, "json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return found["counts"] if found["fingerprint"] == mark else None
