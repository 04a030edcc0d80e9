"""`blip-fast match`: the probabilities and similarities of the model, with either first token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from blip_fast import reference
from blip_fast.cli import main
from blip_fast.data.tokens import tokenize
from blip_fast.data.transforms import eval_transform
from blip_fast.reference.text import with_first_token
from tests.inference.common import TOKENIZER, build, picture, save

TEXTS = ["a cat", "two dogs", "<b>blue</b>"]


def run(*arguments: object) -> list[dict[str, Any]]:
    result = CliRunner().invoke(main, ["match", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize("first_token", ["enc", "cls"])
def test_scores_are_those_of_the_reference(tmp_path: Path, first_token: str) -> None:
    image = picture(tmp_path / "a.png")
    checkpoint = save(tmp_path / "model", "BlipITM")
    found = run(image, *TEXTS, "--checkpoint", checkpoint, "--first-token", first_token)
    model = reference.BlipITM(build("BlipITM").config).eval()
    model.load_state_dict(build("BlipITM").state_dict())
    pixels = eval_transform(32)(Image.open(image))[None]
    ids, mask = tokenize(TEXTS, "itm", TOKENIZER)
    grounded = with_first_token(ids, model.config.enc_token_id) if first_token == "enc" else ids
    with torch.no_grad():
        itm = model.itm(pixels.expand(3, -1, -1, -1), grounded, mask).softmax(1)[:, 1]
        itc = model.itc(pixels, ids, mask)[0]
    assert [(record["image"], record["text"]) for record in found] == [(str(image), text) for text in TEXTS]
    torch.testing.assert_close(torch.tensor([record["itm"] for record in found]), itm, atol=2e-5, rtol=0)
    torch.testing.assert_close(torch.tensor([record["cosine"] for record in found]), itc, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["match", "features"])
def test_int8_is_not_offered_where_it_is_refused(name: str) -> None:
    result = CliRunner().invoke(main, [name, "a.png", "a cat", "--precision", "int8"])
    assert result.exit_code == 2
    assert "'int8' is not one of 'fp32', 'bf16', 'fp16'" in result.output


def test_a_pretrained_model_can_match(tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "model", "BlipPretrain")
    (record,) = run(picture(tmp_path / "a.png"), "a cat", "--checkpoint", checkpoint)
    assert 0 <= record["itm"] <= 1
    assert -1 <= record["cosine"] <= 1
