"""`blip-fast features`: rows of the model's features in a safetensors file, with their ids."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors import safe_open
from torch import Tensor

from blip_fast import models
from blip_fast.cli import main
from blip_fast.inference.inputs import Inputs
from blip_fast.inference.pictures import normalised, one_picture
from tests.inference.common import build, picture, pictures, save, shard

TEXTS = ["a cat", "a picture of two dogs"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("model"), "BlipPretrain")


@pytest.fixture(scope="module")
def model(checkpoint: str) -> models.BlipFeatureExtractor:
    return models.BlipFeatureExtractor.from_pretrained(checkpoint)


def run(*arguments: object, lines: str = "") -> Result:
    return CliRunner().invoke(main, ["features", *map(str, arguments)], input=lines)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def ids(tensors: dict[str, Tensor]) -> list[str]:
    return json.loads(tensors["ids"].numpy().tobytes())


def pixels(path: Path) -> Tensor:
    return normalised(one_picture(Inputs([str(path)]), 32), torch.empty(0))[None]


@pytest.mark.parametrize("projected", [False, True])
def test_images(tmp_path: Path, checkpoint: str, model: models.BlipFeatureExtractor, projected: bool) -> None:
    paths = pictures(tmp_path / "images", 5)
    (tmp_path / "images" / "001x.png").write_bytes(b"")
    output = tmp_path / "new" / "f.safetensors"
    flags = ("--projected",) if projected else ()
    result = run(tmp_path / "images", "--checkpoint", checkpoint, "--output", output, "--batch-size", 2, *flags)
    assert result.exit_code == 3, result.output
    assert "001x.png" in result.stderr
    tensors, metadata = read(output)
    assert ids(tensors) == [str(path) for path in paths]
    assert (metadata["kind"], metadata["projected"]) == ("image", str(projected).lower())
    with torch.no_grad():
        expected = torch.cat([model.image_features(pixels(path), projected) for path in paths])
    torch.testing.assert_close(tensors["image"], expected, atol=1e-5, rtol=1e-5)
    assert list(output.parent.iterdir()) == [output]


def test_texts(tmp_path: Path, checkpoint: str, model: models.BlipFeatureExtractor) -> None:
    common = ("--kind", "text", "--checkpoint", checkpoint, "--output", tmp_path / "f.safetensors")
    assert run(TEXTS[0], "-", *common, "--projected", lines=f"{TEXTS[1]}\n").exit_code == 0
    tensors, _ = read(tmp_path / "f.safetensors")
    assert ids(tensors) == TEXTS
    with torch.no_grad():
        torch.testing.assert_close(tensors["text"], model.text_features(TEXTS, projected=True), atol=1e-5, rtol=1e-5)
    assert run(*TEXTS, *common).exit_code == 0
    tensors, _ = read(tmp_path / "f.safetensors")
    assert tensors["lengths"].tolist() == [4, 7]
    assert not tensors["text"][0, 4:].any()
    with torch.no_grad():
        torch.testing.assert_close(tensors["text"][:1, :4], model.text_features(TEXTS[:1]), atol=1e-5, rtol=1e-5)


def test_captions_become_pairs(tmp_path: Path, checkpoint: str, model: models.BlipFeatureExtractor) -> None:
    image, output = picture(tmp_path / "a.png"), tmp_path / "f.safetensors"
    lines = [{"image": str(image), "caption": text} for text in TEXTS]
    lines.insert(1, {"image": "https://example.org/a.png", "caption": "a cat"})
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    common = (tmp_path / "captions.jsonl", "--kind", "multimodal", "--checkpoint", checkpoint, "--output", output)
    result = run(*common)
    assert result.exit_code == 3, result.output
    assert "nothing is fetched without --allow-remote" in result.stderr
    tensors, _ = read(output)
    assert ids(tensors) == [str(image)] * 2
    with torch.no_grad():
        expected = model.multimodal_features(pixels(image), TEXTS[1:])
    torch.testing.assert_close(tensors["multimodal"][1:], expected, atol=1e-5, rtol=1e-5)
    refused = run(*common, "--projected")
    assert refused.exit_code == 1
    assert "have no projection" in refused.output


def test_captions_of_a_shard_become_pairs(tmp_path: Path, checkpoint: str, model: models.BlipFeatureExtractor) -> None:
    image, output = picture(tmp_path / "a.png"), tmp_path / "f.safetensors"
    path = shard(tmp_path / "0.tar", {"x.png": b"", "a.png": image.read_bytes()})
    names = [f"{path}::a.png", str(image), f"{path}::a.png", f"{path}::none.png"]
    lines = [{"image": name, "caption": TEXTS[0]} for name in names]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    common = ("--kind", "multimodal", "--checkpoint", checkpoint, "--output", output)
    result = run(tmp_path / "captions.jsonl", *common)
    assert result.exit_code == 3, result.output
    assert f"{path}::none.png" in result.stderr
    tensors, _ = read(output)
    assert ids(tensors) == names[:3]
    assert torch.equal(tensors["multimodal"][0], tensors["multimodal"][1])


def test_half_precision_is_kept(tmp_path: Path, checkpoint: str) -> None:
    output = tmp_path / "f.safetensors"
    result = run(picture(tmp_path / "a.png"), "--checkpoint", checkpoint, "--output", output, "--precision", "bf16")
    assert result.exit_code == 0, result.output
    assert read(output)[0]["image"].dtype == torch.bfloat16


def test_what_is_no_file_is_not_replaced(tmp_path: Path, checkpoint: str) -> None:
    output = tmp_path / "pipe"
    os.mkfifo(output)
    result = run(picture(tmp_path / "a.png"), "--checkpoint", checkpoint, "--output", output)
    assert result.exit_code == 1
    assert "is no regular file; expected a new file" in result.output
    assert stat.S_ISFIFO(output.stat().st_mode)


def test_refusals_are_one_sentence(tmp_path: Path, checkpoint: str) -> None:
    output = tmp_path / "f.safetensors"
    build("BlipFeatureExtractor").save_pretrained(tmp_path / "plain")
    (tmp_path / "bad.json").write_text('[{"image": "a.png"}]')
    (tmp_path / "bad.jsonl").write_text("{")
    (tmp_path / "none.json").write_text("[]")
    (tmp_path / "names.json").write_text('["a.png"]')
    (tmp_path / "gone.json").write_text('[{"image": "gone.png", "caption": "a cat"}]')
    (tmp_path / "broken.png").write_bytes(b"")
    image = picture(tmp_path / "a.png")
    for arguments, message in (
        ((image, "--checkpoint", tmp_path / "plain", "--projected"), "projected=True for a model without projections"),
        ((tmp_path / "bad.json", "--kind", "multimodal", "--checkpoint", checkpoint), "record 1 of .* has no 'image'"),
        (
            (tmp_path / "bad.jsonl", "--kind", "multimodal", "--checkpoint", checkpoint),
            "neither JSON lines nor a JSON list",
        ),
        ((tmp_path / "none.json", "--kind", "multimodal", "--checkpoint", checkpoint), "there are no pairs; expected"),
        (
            (tmp_path / "names.json", "--kind", "multimodal", "--checkpoint", checkpoint),
            "record 1 of .* has no 'image'",
        ),
        (
            (tmp_path / "gone.json", "--kind", "multimodal", "--checkpoint", checkpoint),
            "none of the inputs could be read",
        ),
        ((image, "--kind", "multimodal", "--checkpoint", checkpoint), "a.png holds neither JSON lines nor"),
        (("caf\udce9", "--kind", "text", "--checkpoint", checkpoint), r"texts has 'caf.udce9'; expected text without"),
        ((tmp_path, "--kind", "multimodal", "--checkpoint", checkpoint), "Is a directory"),
        ((tmp_path / "broken.png", "--checkpoint", checkpoint), "none of the inputs could be read"),
        (
            ("cat " * 70, "--kind", "text", "--checkpoint", checkpoint),
            "text 1 has 72 tokens; the model takes 64 at most",
        ),
    ):
        result = run(*arguments, "--output", output, "--quiet")
        assert result.exit_code == 1
        last = result.output.splitlines()[-1]
        assert last.startswith("Error: ")
        assert re.search(message, last), last
        assert not output.exists()
