"""``from_pretrained`` and ``save_pretrained``: every head through every format of its own, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from blip_fast.checkpoints import files, load_checkpoint
from blip_fast.checkpoints.heads import HEADS
from blip_fast.checkpoints.loading import LoadReport, materialise, tied_names
from tests.checkpoints.common import CLASSES, assert_same_state, build, small_config, small_tokenizer


@pytest.mark.parametrize("format", ["published", "safetensors"])
@pytest.mark.parametrize("head", HEADS)
def test_round_trip(head: str, format: str, tmp_path: Path) -> None:
    model = build(head, momentum=0.9, text_heads=2, drop_path=0.25)
    model.save_pretrained(tmp_path / "model", format)
    again = CLASSES[head].from_pretrained(tmp_path / "model")
    assert_same_state(again, model)
    assert again.config == model.config
    assert again.load_report == LoadReport()
    assert tied_names(again) == tied_names(model)
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in model.parameters()]
    assert not again.training


@pytest.mark.parametrize("head", HEADS)
def test_fused_models_read_what_reference_models_write(head: str, tmp_path: Path) -> None:
    fused = pytest.importorskip("blip_fast.models", exc_type=ImportError)
    model = build(head)
    model.save_pretrained(tmp_path)
    again = getattr(fused, HEADS[head].class_name).from_pretrained(tmp_path)
    assert type(again).__module__.startswith("blip_fast.models.")
    assert_same_state(again, model)


@pytest.mark.parametrize("head", HEADS)
def test_state_is_all_that_construction_without_values_leaves_open(head: str) -> None:
    """``from_pretrained`` skips initial values where a checkpoint is complete: there must be no tensors beside it."""
    with torch.device("meta"):
        model = CLASSES[head](small_config())
    ties = tied_names(model)
    materialise(model)
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    assert tensors.keys() == model.state_dict().keys()
    assert all(tensor.device.type == "cpu" for tensor in tensors.values())
    assert tied_names(model) == ties


def test_published_file_has_every_name(tmp_path: Path) -> None:
    model = build("pretrain")
    model.save_pretrained(tmp_path / "model.pth", "published")
    content = torch.load(tmp_path / "model.pth", weights_only=True)
    assert list(content) == ["model", "config"]
    assert list(content["model"]) == list(model.state_dict())
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


def test_safetensors_holds_tied_parameters_once(tmp_path: Path) -> None:
    model = build("pretrain")
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == model.state_dict().keys() - tied_names(model).keys()
    stored = json.loads((tmp_path / "config.json").read_text())
    assert (stored["format"], stored["format_version"], stored["head"]) == ("blip_fast", 1, "pretrain")


@pytest.mark.parametrize("format", ["published", "safetensors"])
def test_another_image_size(format: str, tmp_path: Path) -> None:
    model = build("retrieval")
    model.save_pretrained(tmp_path, format)
    larger = CLASSES["retrieval"].from_pretrained(tmp_path, image_size=64)
    assert larger.config == small_config(image_size=64)
    assert larger.load_report.reshaped == ["visual_encoder.pos_embed", "visual_encoder_m.pos_embed"]
    assert larger.visual_encoder.pos_embed.shape == (1, 65, 64)
    assert torch.equal(larger.visual_encoder.pos_embed[:, 0], model.visual_encoder.pos_embed[:, 0])


def test_queues_of_another_size_start_anew(tmp_path: Path) -> None:
    model = build("retrieval")
    model.ptr_queue.fill_(11)
    model.save_pretrained(tmp_path)
    shorter = CLASSES["retrieval"].from_pretrained(tmp_path, queue_size=8)
    assert sorted(shorter.load_report.dropped) == ["idx_queue", "image_queue", "ptr_queue", "text_queue"]
    assert shorter.ptr_queue.item() == 0
    assert (shorter.idx_queue == -100).all()
    torch.testing.assert_close(shorter.image_queue.norm(dim=0), torch.ones(8))
    assert torch.equal(shorter.temp, model.temp)


def test_load_checkpoint_into_a_model(tmp_path: Path) -> None:
    build("pretrain").save_pretrained(tmp_path / "pretrain.pth", "published")
    model = build("caption", seed=1, image_size=48)
    report = load_checkpoint(model, tmp_path / "pretrain.pth")
    assert report.reshaped == ["visual_encoder.pos_embed"]
    assert not report.initial
    expected = build("pretrain").text_decoder.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.text_decoder.state_dict().items())


def test_tokenizer_is_stored(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    build("caption").save_pretrained(tmp_path, tokenizer=small_tokenizer())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert tokenizer("a picture of cat").input_ids == [101, 110, 111, 112, 113, 102]


def test_save_keeps_other_files_and_replaces_its_own(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("kept")
    build("itm").save_pretrained(tmp_path)
    second = build("itm", seed=1)
    second.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "log.txt", "model.safetensors"]
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1
    assert_same_state(CLASSES["itm"].from_pretrained(tmp_path), second)


def test_interrupted_save_leaves_the_old_model_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = build("itm"), build("itm", seed=1)
    old.save_pretrained(tmp_path / "model")

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("blip_fast.checkpoints.pretrained.save_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            new.save_pretrained(tmp_path / "model")
    assert_same_state(CLASSES["itm"].from_pretrained(tmp_path / "model"), old)

    synced: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(files, "_sync", lambda path: interrupted() if synced else synced.append(path.name))
        with pytest.raises(KeyboardInterrupt):
            new.save_pretrained(tmp_path / "model")
    assert synced == ["model.safetensors"]  # the new weights are in, the configuration is not
    with pytest.raises(FileNotFoundError, match=r"has no config\.json and 0 \.pth files"):
        CLASSES["itm"].from_pretrained(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_refused_targets(tmp_path: Path) -> None:
    model = build("itm")
    with pytest.raises(ValueError, match="format='onnx'; expected one of 'published', 'safetensors', 'hf'"):
        model.save_pretrained(tmp_path, "onnx")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is a file; expected a folder"):
        model.save_pretrained(tmp_path / "file")
    model.save_pretrained(tmp_path / "folder")
    with pytest.raises(ValueError, match="holds a model of another format"):
        model.save_pretrained(tmp_path / "folder", "published")


def test_refused_sources(tmp_path: Path) -> None:
    build("itm").save_pretrained(tmp_path / "itm")
    with pytest.raises(ValueError, match=r"checkpoint of BlipITM and does not fit BlipCaptioner: \d+ of its tensors"):
        CLASSES["caption"].from_pretrained(tmp_path / "itm")
    with pytest.raises(ValueError, match=r"does not fit BlipITM: 4 of its tensors .* 'vision_proj.weight' first"):
        CLASSES["itm"].from_pretrained(tmp_path / "itm", embed_dim=24)
    with pytest.raises(ValueError, match="BlipConfig has no field 'image_sise'; did you mean 'image_size'"):
        CLASSES["itm"].from_pretrained(tmp_path / "itm", image_sise=64)
    (tmp_path / "clip").mkdir()
    for text, message in (
        ('{"model_type": "clip"}', "has model_type='clip'; expected 'blip'"),
        ("[1]", "has model_type=None"),
        ("{", "is no JSON"),
        ('{"format": "blip_fast", "format_version": 2, "head": "itm"}', "has format_version=2 and head='itm'"),
    ):
        (tmp_path / "clip" / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            CLASSES["itm"].from_pretrained(tmp_path / "clip")


@pytest.mark.parametrize(
    ("removed", "named"),
    [
        ("visual_encoder.patch_embed.", "visual_encoder.patch_embed.proj.weight"),
        ("visual_encoder.blocks.", "visual_encoder.blocks.0.mlp.fc1.weight"),
        ("text_encoder.encoder.layer.0.intermediate.", "text_encoder.encoder.layer.0.intermediate.dense.weight"),
    ],
)
def test_incomplete_files(removed: str, named: str, tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in build("itm").state_dict().items() if not name.startswith(removed)}
    torch.save({"model": state}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=f"model.pth holds an incomplete BLIP model: '{named}' is missing"):
        CLASSES["itm"].from_pretrained(tmp_path / "model.pth")


def test_beside_another_published_model(tmp_path: Path) -> None:
    model = build("itm")
    model.save_pretrained(tmp_path / "checkpoint_best.pth", "published")
    with pytest.raises(ValueError, match=r"holds checkpoint_best\.pth, another model; expected another folder"):
        model.save_pretrained(tmp_path, "published")
    assert_same_state(CLASSES["itm"].from_pretrained(tmp_path), model)


def test_an_mlp_of_a_width_that_no_ratio_gives_exactly(tmp_path: Path) -> None:
    model = build("itm", vit_width=704, vit_heads=11, vit_mlp_ratio=960.5 / 704)
    model.save_pretrained(tmp_path, "published")
    assert_same_state(CLASSES["itm"].from_pretrained(tmp_path), model)
