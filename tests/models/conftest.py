"""Fixtures of the fused models' tests."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["exact", "capacity"])
def plan(request, monkeypatch):
    """Packing as on the host, where lengths are known, and as on a device, where they are not."""
    if request.param == "capacity":
        monkeypatch.setattr("blip_fast.data.packing._on_host", lambda tensor: False)
    return request.param
