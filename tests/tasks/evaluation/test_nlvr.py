"""Accuracy on NLVR2; on two ranks see test_two_ranks.py."""

from __future__ import annotations

import pytest

from blip_fast.models import BlipNLVR
from blip_fast.tasks.evaluation.nlvr import accuracy
from tests import golden
from tests.tasks.evaluation.common import NLVR_RIGHT, NLVR_TARGETS, nlvr_batches


def test_share_of_right_answers() -> None:
    model = golden.build(BlipNLVR, "nlvr")
    samples = range(NLVR_TARGETS)
    assert accuracy(model, nlvr_batches(samples, 3)) == len(NLVR_RIGHT) / NLVR_TARGETS
    for sample in samples:
        assert accuracy(model, nlvr_batches([sample])) == float(sample in NLVR_RIGHT)


def test_no_sample_is_an_error() -> None:
    with pytest.raises(ValueError, match="own_batches holds no sample"):
        accuracy(golden.build(BlipNLVR, "nlvr"), [])
