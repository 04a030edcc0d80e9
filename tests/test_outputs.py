"""What the models return is open to torch: FSDP2 of torch 2.11 trains nothing whose output it cannot look into."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils._pytree import tree_leaves

from blip_fast import outputs

RECORDS = [kind for kind in vars(outputs).values() if dataclasses.is_dataclass(kind)]


@pytest.mark.parametrize("record", RECORDS)
def test_torch_finds_the_tensors(record):
    loss = torch.zeros(())
    made = record(**{field.name: loss for field in dataclasses.fields(record)})
    leaves = tree_leaves(made)
    assert len(leaves) == len(dataclasses.fields(record))
    assert all(leaf is loss for leaf in leaves)
