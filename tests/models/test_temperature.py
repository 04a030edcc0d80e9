"""The temperature stays in its published range."""

from __future__ import annotations

import pytest

from blip_fast import models, reference
from tests.models.heads import HEADS


@pytest.mark.parametrize("package", [models, reference])
@pytest.mark.parametrize("name", ["pretrain", "retrieval"])
def test_a_forward_pass_clamps_it(package, name):
    head = HEADS[name]
    model = head.build(getattr(package, head.name))
    for value, expected in ((2.0, 0.5), (1e-5, 0.001), (0.2, 0.2)):
        model.temp.data.fill_(value)
        head.loss(model, head.inputs())
        assert model.temp.item() == pytest.approx(expected)
