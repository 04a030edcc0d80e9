"""Result files: each rank's own, ``NAME_rank%d.json``, and ``NAME.json`` with the entries of all ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from blip_fast.checkpoints.files import write_text
from blip_fast.reference.gather import rank
from blip_fast.training.distributed import gather_objects

Entry = dict[str, Any]


def save_results(entries: list[Entry], folder: Path, name: str, key: str) -> list[Entry]:
    """Write the published result files; all ranks call it together.

    Args:
        entries: of this rank.
        folder: where to; it is made if needed.
        name: of the files, without ".json".
        key: an entry whose value of this key has been seen before is left out of ``NAME.json``.

    Returns: the entries of ``NAME.json`` on rank 0, an empty list on the others.
    """
    write_text(folder / f"{name}_rank{rank()}.json", json.dumps(entries))
    first: dict[Any, Entry] = {}
    for part in gather_objects(entries) or []:
        for entry in part:
            first.setdefault(entry[key], entry)
    merged = list(first.values())
    if rank() == 0:
        write_text(folder / f"{name}.json", json.dumps(merged))
    return merged
