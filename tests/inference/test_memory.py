"""Batches that fit into memory, by rule and when the rule errs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from blip_fast.config import BlipConfig
from blip_fast.inference import memory
from blip_fast.inference.memory import batch_size_for, bytes_per_picture, free_memory, in_parts

CPU = torch.device("cpu")


def test_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    config = BlipConfig.base(image_size=384)
    taken = bytes_per_picture(config, 4, texts=3, max_length=20)
    assert taken == 4 * (577 * 768 * 12 + 3 * 384**2 + 2 * 12 * 768 * (577 + 60)) + 3 * 30524 * 16
    for pictures, expected in ((0.5, 1), (1, 1), (7, 7), (1000, 32)):
        monkeypatch.setattr(memory, "free_memory", lambda device, free=pictures * taken * 4: int(free))
        assert batch_size_for(config, CPU, torch.float32, 3, 20) == expected
    assert bytes_per_picture(config, 2) * 2 == bytes_per_picture(config, 4)


def test_free_memory() -> None:
    assert 2**20 < free_memory(CPU) < 2**50


def test_limit_of_the_control_group(tmp_path: Path) -> None:
    (tmp_path / "memory.current").write_text("300\n")
    (tmp_path / "memory.stat").write_text("anon 180\nfile 120\ninactive_file 50\nactive_file 70\n")
    for limit, expected in (("max", None), ("1000\n", 750), ("200", 1)):
        (tmp_path / "memory.max").write_text(limit)
        assert memory._left_in_control_group(tmp_path) == expected
    assert memory._left_in_control_group(tmp_path / "none") is None


def test_halves_where_memory_does_not_suffice() -> None:
    sizes = []

    def work(rows: slice) -> list[int]:
        sizes.append(rows.stop - rows.start)
        if rows.stop - rows.start > 3:
            raise torch.OutOfMemoryError
        return list(range(rows.start, rows.stop))

    assert in_parts(work, 0, 11) == list(range(11))
    assert sizes == [11, 5, 2, 3, 6, 3, 3]

    def never(rows: slice) -> list[int]:
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        in_parts(never, 0, 4)
