"""The full-size models have the published parameter names, shapes and ties, in the published order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from blip_fast import reference
from blip_fast.config import BlipConfig
from tests import golden

MODELS = {
    "pretrain": reference.BlipPretrain,
    "retrieval": reference.BlipRetrieval,
    "decoder": reference.BlipCaptioner,
    "vqa": reference.BlipVQA,
    "nlvr": reference.BlipNLVR,
    "itm": reference.BlipITM,
    "base_feature_extractor": reference.BlipFeatureExtractor,
}


def ties(model: nn.Module) -> dict[str, str]:
    """Each further name of a parameter with its first one."""
    first: dict[int, str] = {}
    names = model.named_parameters(remove_duplicate=False)
    return {name: first[id(p)] for name, p in names if first.setdefault(id(p), name) != name}


@pytest.mark.parametrize("path", sorted(golden.FOLDER.glob("statedict_[!h]*.json")), ids=lambda path: path.stem)
def test_names_shapes_and_ties(path: Path) -> None:
    stored = json.loads(path.read_text())
    name, size = stored["model"], stored["vit"]
    config = getattr(BlipConfig, size)(image_size=stored["image_size"])
    with torch.device("meta"):
        model = MODELS[name](config)
    state = {
        key: (list(value.shape), str(value.dtype).removeprefix("torch.")) for key, value in model.state_dict().items()
    }
    expected = {key: (value["shape"], value["dtype"]) for key, value in stored["state_dict"].items()}
    assert state == expected
    assert list(state) == list(expected)  # the order numbers the parameters in optimizer states
    assert ties(model) == stored.get("tied_keys", {})
    parameters = list(model.parameters())
    assert sum(p.numel() for p in parameters) == stored["parameters_total"]
    assert sum(p.numel() for p in parameters if p.requires_grad) == stored["parameters_trainable"]
