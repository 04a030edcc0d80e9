"""The page about a CapFilt run: scores, what was kept and removed, and texts of both kinds beside their pictures."""

from __future__ import annotations

import heapq
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blip_fast.capfilt.job import MANIFEST, RECORDS
from blip_fast.capfilt.samples import read_samples, root_of
from blip_fast.capfilt.selection import read_records
from blip_fast.capfilt.tally import KINDS, Record, texts_of
from blip_fast.capfilt.units import Unit
from blip_fast.data.pictures import BrokenSampleError
from blip_fast.report.figures import match_histograms
from blip_fast.report.page import inline_svg, picture_uri, render

_BINS = 40
_SHOWN_PER_KIND = 8
_SHOWN_REJECTED = 20
_THUMBNAIL = 192  # pixels
_LONGEST_TEXT = 300
# The pictures shown, by what became of the web text and of the first synthetic one; the paper's Figure 4 shows the first kind.
GALLERIES = {
    (False, True): "Web text removed, synthetic caption kept",
    (True, True): "Both kept",
    (True, False): "Web text kept, synthetic caption removed",
    (False, False): "Both removed",
}


class Findings:
    """What one pass over the records leaves: histograms, and samples to show, in constant memory."""

    def __init__(self) -> None:
        self.bins = {f"{kind} texts": [0] * _BINS for kind in KINDS}
        self.rejected: list[Record] = []
        self._heaps: dict[tuple[bool, bool], list[tuple[int, int, int, Record]]] = {kind: [] for kind in GALLERIES}

    def add(self, unit: Unit, record: Record) -> None:
        """Take in one record."""
        if "rejected" in record:
            if len(self.rejected) < _SHOWN_REJECTED:
                self.rejected.append(record)
            return
        for kind, text in texts_of(record):
            if "itm" in text:
                self.bins[f"{kind} texts"][min(int(text["itm"] * _BINS), _BINS - 1)] += 1
        # Seeds are random and fixed: the largest ones are a fair choice, and the same one every time.
        heap = self._heaps[record["web"]["kept"], record["synthetic"][0]["kept"]]
        push = heapq.heappush if len(heap) < _SHOWN_PER_KIND else heapq.heappushpop
        push(heap, (record["seed"], unit.index, record["number"], record))

    def chosen(self) -> dict[tuple[bool, bool], list[tuple[int, Record]]]:
        """(unit, record) of the samples to show."""
        return {kind: [(unit, record) for _, unit, _, record in sorted(heap)] for kind, heap in self._heaps.items()}


def capfilt_page(folder: Path, image_root: Path | None = None) -> str:
    """The report as HTML.

    Args:
        folder: the output folder of a finished run.
        image_root: where pictures of lists are, if not where they were.

    Raises FileNotFoundError where there is no finished run.
    """
    if not (folder / MANIFEST).is_file():
        raise FileNotFoundError(f"{folder} has no {MANIFEST}; expected the folder of a finished run")
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    findings, units = Findings(), {}
    for unit in units_of(folder):
        units[unit.index] = unit
        for record in read_records(folder / RECORDS / f"{unit.name}.jsonl"):
            findings.add(unit, record)
    chosen = findings.chosen()
    uris = thumbnails(itertools.chain.from_iterable(chosen.values()), units, image_root or _root_of(manifest))
    galleries = [
        {
            "title": title,
            "pictures": [gallery_item(record, uris.get((unit, record["number"]))) for unit, record in chosen[kind]],
        }
        for kind, title in GALLERIES.items()
    ]
    return render(
        "capfilt.html",
        manifest=manifest,
        kinds=KINDS,
        histograms=inline_svg(match_histograms(findings.bins, manifest["threshold"])),
        galleries=[gallery for gallery in galleries if gallery["pictures"]],
        rejected=findings.rejected,
    )


def units_of(folder: Path) -> Iterator[Unit]:
    """The units of a run, as their counts tell them."""
    for path in sorted((folder / RECORDS).glob("*.json")):
        yield Unit(**json.loads(path.read_text(encoding="utf-8"))["unit"])


def thumbnails(
    wanted: Iterator[tuple[int, Record]], units: dict[int, Unit], image_root: Path | None
) -> dict[tuple[int, int], str]:
    """Pictures as data URIs by (unit, number); what cannot be read any more is left out."""
    numbers: dict[int, set[int]] = {}
    for unit, record in wanted:
        numbers.setdefault(unit, set()).add(record["number"])
    found = {}
    for index, wanted_numbers in numbers.items():
        try:
            for sample in itertools.takewhile(lambda sample: wanted_numbers, read_samples(units[index])):  # noqa: B023
                if sample.number in wanted_numbers:
                    wanted_numbers.remove(sample.number)
                    picture = sample.picture(root_of(units[index], image_root))
                    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
                    found[index, sample.number] = picture_uri(picture)
        except (OSError, ValueError, BrokenSampleError):
            continue
    return found


def gallery_item(record: Record, uri: str | None) -> dict[str, Any]:
    """One picture with its texts."""
    texts = [
        {
            "kind": kind,
            "text": text["text"][:_LONGEST_TEXT] + ("..." if len(text["text"]) > _LONGEST_TEXT else ""),
            "kept": text["kept"],
            "score": f"{100 * text['itm']:.0f} %" if "itm" in text else text["dropped"],
        }
        for kind, text in texts_of(record)
    ]
    return {"uri": uri, "key": record["key"], "texts": texts}


def _root_of(manifest: dict[str, Any]) -> Path | None:
    return None if manifest["image_root"] is None else Path(manifest["image_root"])
