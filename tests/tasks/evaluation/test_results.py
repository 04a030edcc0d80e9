"""Result files of one rank; those of two are in test_two_ranks.py."""

from __future__ import annotations

import json
from pathlib import Path

from blip_fast.tasks.evaluation.results import save_results


def test_duplicates_are_left_out_of_the_merged_file(tmp_path: Path) -> None:
    entries = [{"image_id": 2, "caption": "a"}, {"image_id": 1, "caption": "b"}, {"image_id": 2, "caption": "c"}]
    merged = save_results(entries, tmp_path / "result", "val_epoch0", key="image_id")
    assert merged == entries[:2]
    assert json.loads((tmp_path / "result" / "val_epoch0.json").read_text()) == entries[:2]
    assert json.loads((tmp_path / "result" / "val_epoch0_rank0.json").read_text()) == entries
