"""The same ids as transformers' `generate` on the same weights, greedy and with beams."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from benchmarks.peers.huggingface import hugging_face_captioner
from blip_fast import reference
from tests.generation.common import captioner
from tests.models.common import pair

pytest.importorskip("transformers")
IMAGES = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(9)) * 3
PROMPT = torch.tensor([101, 120, 130, 102])


@functools.cache
def transformers_captioner() -> Any:
    plain = pair(reference.BlipCaptioner, reference.BlipCaptioner)[0]
    plain.load_state_dict(captioner().state_dict())
    return hugging_face_captioner(plain).eval()


@pytest.mark.parametrize(
    "options",
    [
        dict(num_beams=1, min_length=0, max_length=20),
        dict(num_beams=1, min_length=8, max_length=12, repetition_penalty=1.3),
        dict(num_beams=3, min_length=0, max_length=20),
        dict(num_beams=3, min_length=5, max_length=20),
        dict(num_beams=5, min_length=12, max_length=16),
        dict(num_beams=4, min_length=0, max_length=9, num_return_sequences=3),
        dict(num_beams=3, min_length=6, max_length=14, repetition_penalty=1.2),
    ],
)
def test_same_ids(options):
    with torch.no_grad():
        expected = transformers_captioner().generate(IMAGES, PROMPT.repeat(len(IMAGES), 1), do_sample=False, **options)
    ids = captioner().generate_ids(IMAGES, PROMPT, length_norm="generated", **options)
    ended = (expected == 102).long().cumsum(1) - (expected == 102).long() > 0  # filled with the end token, or with 0
    expected = expected.masked_fill(ended, 0)
    width = max(ids.shape[1], expected.shape[1])
    ids, expected = (torch.nn.functional.pad(texts, (0, width - texts.shape[1])) for texts in (ids, expected))
    assert torch.equal(ids, expected)
    assert len({tuple(row) for row in ids.tolist()}) > 1
