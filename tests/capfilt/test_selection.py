"""Thresholds and shares."""

from __future__ import annotations

import math

import numpy as np
import pytest

from blip_fast.capfilt import selection
from blip_fast.capfilt.selection import decide, threshold_of_fraction


def record(*scores):
    texts = [{"text": "x", "dropped": "empty"} if score is None else {"text": "x", "itm": score} for score in scores]
    return {"web": texts[0], "synthetic": texts[1:]}


def kept(records, threshold):
    texts = [text for one in records for text in (one["web"], *one["synthetic"])]
    return sum("itm" in text and text["itm"] >= threshold for text in texts)


def test_a_text_is_kept_from_the_threshold_on():
    decided = decide(record(0.5, 0.49999, None), 0.5)
    assert [text["kept"] for text in (decided["web"], *decided["synthetic"])] == [True, False, False]
    assert [text.get("dropped") for text in (decided["web"], *decided["synthetic"])] == [
        None,
        "below_threshold",
        "empty",
    ]
    assert decided["threshold"] == 0.5
    rejected = {"rejected": "broken_picture"}
    assert decide(rejected, 0.5) == rejected


@pytest.mark.parametrize("chunk", [7, 65536])
@pytest.mark.parametrize("fraction", [0.001, 0.1, 1 / 3, 0.5, 0.77, 1.0])
def test_a_share_is_exact(monkeypatch, chunk, fraction):
    monkeypatch.setattr(selection, "_CHUNK", chunk)
    random = np.random.default_rng(0)
    # half of them as near to 1 as the scores of a sure filter are
    values = np.concatenate([random.random(500), 1 - 2e-7 * random.integers(0, 500, 500)]).astype(np.float32)
    scores = [float(f"{value:.9g}") for value in random.permutation(values)]
    records = [record(*scores[start : start + 2]) for start in range(0, 1000, 2)]
    threshold = threshold_of_fraction(lambda: records, fraction)
    wanted = math.ceil(round(fraction * 1000, 6))
    assert threshold == sorted(scores, reverse=True)[wanted - 1]
    assert kept(records, threshold) >= wanted
    assert kept(records, np.nextafter(np.float32(threshold), np.float32(2))) < wanted


def test_texts_without_a_score_count_as_the_lowest():
    records = [record(0.9, None), record(None, 0.2), {"rejected": "broken_picture", "web": {"text": ""}}]
    assert threshold_of_fraction(lambda: records, 0.25) == float(f"{np.float32(0.9):.9g}")
    assert threshold_of_fraction(lambda: records, 0.5) == float(f"{np.float32(0.2):.9g}")
    assert threshold_of_fraction(lambda: records, 0.75) == 0.0
    assert threshold_of_fraction(list, 0.5) == 0.0
