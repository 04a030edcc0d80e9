"""What the launch of the AdamW step does with a GPU's addresses."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from blip_fast.kernels.adamw_momentum import _to_device


def test_a_graph_makes_no_table_of_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="a CUDA graph met a tensor of adamw_momentum_step_ at a new address"):
        _to_device((1, 2, 3), torch.device("cuda"))
    assert _to_device((1, 2, 3), torch.device("cpu")).tolist() == [1, 2, 3]
