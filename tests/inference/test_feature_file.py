"""Files of features that the safetensors library opens, however many rows they have and whatever these are called."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open

from blip_fast.inference.feature_file import write_features
from blip_fast.inference.features import FeatureRows


def test_names_of_more_than_a_header_holds(tmp_path: Path) -> None:
    path, names = tmp_path / "f.safetensors", ["图" * 4_000_000 + str(number) for number in range(5)]
    parts = [
        FeatureRows(names[:2], torch.eye(2, 3, dtype=torch.bfloat16)),
        FeatureRows(names[2:], torch.ones(3, 3, dtype=torch.bfloat16)),
    ]
    assert write_features(path, "image", parts, {"kind": "image"}) == 5
    with safe_open(path, "pt") as file:
        assert json.loads(file.get_tensor("ids").numpy().tobytes()) == names
        assert file.get_tensor("image").tolist() == [[1, 0, 0], [0, 1, 0], *[[1, 1, 1]] * 3]
        assert file.metadata() == {"kind": "image"}
