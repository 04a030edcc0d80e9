"""Published files: what is read from them, and what each head makes of checkpoints of another."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from blip_fast.checkpoints.heads import HEADS, head_of
from blip_fast.checkpoints.loading import LoadReport, fit
from blip_fast.checkpoints.published import config_values, read_state
from blip_fast.config import BlipConfig
from tests import golden
from tests.checkpoints.common import CLASSES, assert_same_state, build, small_config


class Malicious:
    """Runs code when it is unpickled without restrictions."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (eval, (f"open({str(self.path)!r}, 'w').close()",))


def save(path: Path, content: object, **arguments: object) -> Path:
    torch.save(content, path, **arguments)
    return path


@pytest.mark.parametrize("head", HEADS)
def test_bare_state_dict_and_training_checkpoint(head: str, tmp_path: Path) -> None:
    """Sizes, attention heads and drop path follow from tensors and head, whatever the settings of training were."""
    model = build(head)
    state = model.state_dict()
    settings = {"image_size": 999, "init_lr": "1e-5", "vit": "base", "train_file": ["a.json"]}
    training = {"model": state, "optimizer": {"state": {}, "param_groups": []}, "config": settings, "epoch": 3}
    drop_path = 0.1 if head in ("vqa", "nlvr") else 0.0
    uses_embed_dim = head in ("pretrain", "retrieval", "itm")
    expected = small_config(
        drop_path=drop_path,
        embed_dim=16 if uses_embed_dim else 256,
        queue_size=12 if head in ("pretrain", "retrieval") else 57600,
    )
    for content in (state, training):
        again = CLASSES[head].from_pretrained(save(tmp_path / "model.pth", content))
        assert_same_state(again, model)
        assert again.config == expected


@pytest.mark.parametrize("wrap", ["module.{}", "_orig_mod.{}", "module._orig_mod.{}", "{vit}"])
def test_names_of_wrapped_models_are_the_models(wrap: str, tmp_path: Path) -> None:
    model = build("itm")
    state = {wrap.format(name, vit=name.replace("encoder.", "encoder._orig_mod.", 1)): tensor
             for name, tensor in model.state_dict().items()}  # fmt: skip
    torch.save({"model": state, "config": model.config.to_dict()}, tmp_path / "wrapped.pth")
    read, _ = read_state(tmp_path / "wrapped.pth")
    assert read.keys() == model.state_dict().keys()


def test_files_of_old_torch_and_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = {"weight": torch.arange(3.0)}
    save_file(state, tmp_path / "new.safetensors")
    for path in (
        save(tmp_path / "old.pth", state, _use_new_zipfile_serialization=False),
        tmp_path / "new.safetensors",
    ):
        assert torch.equal(read_state(path)[0]["weight"], state["weight"])


def test_pickles_with_code_are_refused(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    path = save(tmp_path / "model.pth", {"model": {"weight": torch.zeros(1)}, "config": Malicious(trap)})
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Malicious(trap), protocol=2))
    for refused in (path, tmp_path / "plain.pth"):
        with pytest.raises(ValueError, match="no checkpoint of tensors and plain values; other pickles are not loaded"):
            CLASSES["itm"].from_pretrained(refused)
    assert not trap.exists()


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    whole = save(tmp_path / "model.pth", build("itm").state_dict()).read_bytes()
    for name, content in (
        ("cut.pth", whole[: len(whole) // 2]),
        ("text.pth", b"not a checkpoint"),
        ("empty.pth", b""),
        ("cut.safetensors", b"\x10\x00"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} is "):
            CLASSES["itm"].from_pretrained(tmp_path / name)
    for content in ([1], {"model": 3}, {"model": {}}, {"weight": torch.zeros(1), "step": 3}):
        with pytest.raises(ValueError, match="holds no model; expected a state_dict, or a dictionary with one"):
            CLASSES["itm"].from_pretrained(save(tmp_path / "other.pth", content))
    with pytest.raises(ValueError, match="holds no BLIP model: there is no image encoder"):
        CLASSES["itm"].from_pretrained(save(tmp_path / "linear.pth", {"weight": torch.zeros(1)}))


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    return save(tmp_path / "pretrain.pth", {"model": build("pretrain").state_dict()})


def test_captioner_matching_and_features_are_parts_of_pretraining(pretrained: Path) -> None:
    source = build("pretrain").state_dict()
    for head in ("caption", "itm", "features"):
        model = CLASSES[head].from_pretrained(pretrained)
        assert not model.load_report.initial
        assert "image_queue" in model.load_report.unexpected
        assert all(torch.equal(tensor, source[name]) for name, tensor in model.state_dict().items())


def test_vqa_from_pretraining(pretrained: Path, tmp_path: Path) -> None:
    model = CLASSES["vqa"].from_pretrained(pretrained)
    assert not model.load_report.initial
    assert model.config.drop_path == 0.1
    # With an image encoder of another width the decoder's cross-attention has another shape, as with ViT-L.
    wide = save(tmp_path / "wide.pth", build("pretrain", vit_width=128, vit_heads=2).state_dict())
    model = CLASSES["vqa"].from_pretrained(wide)
    layers = range(model.config.text_layers)
    pattern = "text_decoder.bert.encoder.layer.{}.crossattention.self.{}.weight"
    assert model.load_report.dropped == [pattern.format(n, part) for n in layers for part in ("key", "value")]
    assert not model.load_report.missing


def test_retrieval_from_pretraining(pretrained: Path) -> None:
    model = CLASSES["retrieval"].from_pretrained(pretrained, queue_size=20)
    source = build("pretrain").state_dict()
    assert sorted(model.load_report.dropped) == ["image_queue", "text_queue"]
    assert sorted(model.load_report.missing) == ["idx_queue", "ptr_queue"]
    name = "text_encoder_m.encoder.layer.0.attention.self.query.weight"
    assert torch.equal(model.state_dict()[name], source[name])
    assert model.ptr_queue.item() == 0


def test_nlvr_from_pretraining_doubles_cross_attention(tmp_path: Path) -> None:
    source = build("pretrain", text_layers=7).state_dict()  # the last layer merges the images by a linear layer
    model = CLASSES["nlvr"].from_pretrained(save(tmp_path / "pretrain.pth", source))
    state = model.state_dict()
    prefix = "text_encoder.encoder.layer.2.crossattention."
    for number in "01":
        for part in ("query.weight", "key.bias", "value.weight"):
            assert torch.equal(state[f"{prefix}self{number}.{part}"], source[f"{prefix}self.{part}"])
        assert torch.equal(state[f"{prefix}output.dense{number}.weight"], source[f"{prefix}output.dense.weight"])
    assert torch.equal(state[f"{prefix}output.LayerNorm.bias"], source[f"{prefix}output.LayerNorm.bias"])
    merge = [f"text_encoder.encoder.layer.6.crossattention.output.merge_layer.{part}" for part in ("weight", "bias")]
    head = [f"cls_head.{layer}.{part}" for layer in (0, 2) for part in ("weight", "bias")]
    assert model.load_report.missing == [*merge, *head]
    assert not any(".crossattention." in name and "text_encoder." in name for name in model.load_report.unexpected)


def test_vqa_checkpoint_is_no_captioner(tmp_path: Path) -> None:
    path = save(tmp_path / "vqa.pth", build("vqa").state_dict())
    with pytest.raises(ValueError, match="is a checkpoint of BlipVQA, whose tensors of the same names mean something"):
        CLASSES["caption"].from_pretrained(path)


def test_tensors_of_other_shapes_are_reported(tmp_path: Path) -> None:
    state = build("caption").state_dict()
    state["visual_encoder.norm.weight"] = torch.zeros(65)
    _, report = fit(build("caption", seed=1), state)
    assert report == LoadReport(dropped=["visual_encoder.norm.weight"])
    with pytest.raises(
        ValueError, match=r"does not fit BlipCaptioner: 1 of its tensors .*'visual_encoder.norm.weight'"
    ):
        CLASSES["caption"].from_pretrained(save(tmp_path / "model.pth", state))


def test_position_numbers_need_not_be_stored(tmp_path: Path) -> None:
    model = build("itm")
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("position_ids")}
    again = CLASSES["itm"].from_pretrained(save(tmp_path / "model.pth", state))
    assert again.load_report == LoadReport()
    assert_same_state(again, model)


JSON_NAMES = {"decoder": "caption", "base_feature_extractor": "features"}


@pytest.mark.parametrize("path", sorted(golden.FOLDER.glob("statedict_[!h]*.json")), ids=lambda path: path.stem)
def test_full_size_checkpoints(path: Path) -> None:
    """The published names and shapes tell head and configuration, and fill the model without remainder."""
    stored = json.loads(path.read_text())
    head = JSON_NAMES.get(stored["model"], stored["model"])
    entries = stored["state_dict"].items()
    state: dict[str, Tensor] = {name: torch.empty(entry["shape"], device="meta") for name, entry in entries}
    assert head_of(state) == head
    config = BlipConfig.from_dict(config_values(state, {}, head))
    drop_path = 0.1 if stored["vit"] == "large" or head in ("vqa", "nlvr") else 0.0
    assert config == getattr(BlipConfig, stored["vit"])(image_size=stored["image_size"], drop_path=drop_path)
    with torch.device("meta"):
        model = CLASSES[head](config)
    assert fit(model, state)[1] == LoadReport()
