from __future__ import annotations

import pytest

from blip_fast.data.bad_samples import BadSamples


def test_each_sample_counts_once_and_the_limit_holds() -> None:
    bad = BadSamples(2)
    bad.add(("a.png: cut off", "b.png: gone", "a.png: cut off"))
    bad.add(["b.png: gone"])
    assert list(bad.messages) == ["a.png: cut off", "b.png: gone"]
    with pytest.raises(
        RuntimeError, match=r"3 samples cannot be read, more than max_bad_samples=2; the last: c\.png: odd"
    ):
        bad.add(["c.png: odd"])


def test_no_bad_sample_is_allowed_unless_asked() -> None:
    with pytest.raises(RuntimeError):
        BadSamples().add(["a.png: gone"])
    with pytest.raises(ValueError, match="max_bad_samples=-1"):
        BadSamples(-1)
