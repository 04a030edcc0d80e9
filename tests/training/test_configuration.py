from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from blip_fast.checkpoints import VIT_BASE, VIT_LARGE
from blip_fast.training.configuration import SettingsError, find_config, load_settings, read_yaml, write_settings
from blip_fast.training.settings import (
    CaptionSettings,
    NLVRSettings,
    NoCapsSettings,
    PretrainSettings,
    RetrievalSettings,
    RunSettings,
    VideoRetrievalSettings,
    VQASettings,
)

CONFIGS = Path(str(resources.files("blip_fast.configs").joinpath("")))
CLASSES: dict[str, type[RunSettings]] = {
    "pretrain": PretrainSettings,
    "retrieval_coco": RetrievalSettings,
    "retrieval_flickr": RetrievalSettings,
    "caption_coco": CaptionSettings,
    "vqa": VQASettings,
    "nlvr": NLVRSettings,
    "nocaps": NoCapsSettings,
    "retrieval_msrvtt": VideoRetrievalSettings,
}
# What the published files hold beside paths and addresses, as PyYAML reads them: 1e-5 without a dot is a text to it.
GRAD = dict(vit_grad_ckpt=False, vit_ckpt_layer=0)
WORDS = dict(max_length=20, min_length=5, num_beams=3, prompt="a picture of ")
RETRIEVAL: dict[str, Any] = dict(
    vit="base", batch_size_train=32, batch_size_test=64, vit_grad_ckpt=True, vit_ckpt_layer=4, init_lr="1e-5",
    image_size=384, queue_size=57600, alpha=0.4, weight_decay=0.05, min_lr=0, max_epoch=6,
)  # fmt: skip
PUBLISHED: dict[str, dict[str, Any]] = {
    "pretrain": dict(
        train_file=["/export/a.json", "/export/b.json"], laion_path="", vit="base", **GRAD, image_size=224,
        batch_size=75, queue_size=57600, alpha=0.4, weight_decay=0.05, init_lr="3e-4", min_lr="1e-6", warmup_lr="1e-6",
        lr_decay_rate=0.9, max_epoch=20, warmup_steps=3000,
    ),
    "retrieval_coco": RETRIEVAL
    | dict(image_root="/export/", ann_root="annotation", dataset="coco", pretrained="https://x/y.pth", k_test=256,
           negative_all_rank=True),
    "retrieval_flickr": RETRIEVAL
    | dict(image_root="/export/", ann_root="annotation", dataset="flickr", pretrained="https://x/y.pth", k_test=128,
           negative_all_rank=False),
    "caption_coco": dict(
        image_root="/export/", ann_root="annotation", coco_gt_root="annotation/coco_gt", pretrained="https://x/y.pth",
        vit="base", **GRAD, batch_size=32, init_lr="1e-5", image_size=384, **WORDS, weight_decay=0.05, min_lr=0,
        max_epoch=5,
    ),
    "vqa": dict(
        vqa_root="/export/", vg_root="/export/", train_files=["vqa_train", "vqa_val", "vg_qa"], ann_root="annotation",
        pretrained="https://x/y.pth", vit="base", batch_size_train=16, batch_size_test=32, **GRAD, init_lr="2e-5",
        image_size=480, k_test=128, inference="rank", weight_decay=0.05, min_lr=0, max_epoch=10,
    ),
    "nlvr": dict(
        image_root="/export/", ann_root="annotation", pretrained="https://x/y.pth", vit="base", batch_size_train=16,
        batch_size_test=64, **GRAD, max_epoch=15, image_size=384, weight_decay=0.05, init_lr="3e-5", min_lr=0,
    ),
    "nocaps": dict(
        image_root="/export/", ann_root="annotation", pretrained="https://x/y.pth", vit="base", batch_size=32,
        image_size=384, **WORDS,
    ),
    "retrieval_msrvtt": dict(
        video_root="/export", ann_root="annotation", pretrained="https://x/y.pth", vit="base", batch_size=64, k_test=128,
        image_size=384, num_frm_test=8,
    ),
}  # fmt: skip
PATHS = ("train_file", "image_root", "video_root", "vqa_root", "vg_root", "pretrained")


def write(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize("name", CLASSES)
def test_published_files_parse_and_ours_hold_their_values(name: str, tmp_path: Path) -> None:
    published = load_settings(CLASSES[name], write(tmp_path / f"{name}.yaml", PUBLISHED[name]))
    shipped = load_settings(CLASSES[name], CONFIGS / f"{name}.yaml")
    assert read_yaml(CONFIGS / f"{name}.yaml").keys() == PUBLISHED[name].keys()
    differing = {key for key, value in published.model_dump().items() if getattr(shipped, key) != value}
    assert differing <= set(PATHS)
    for key, value in PUBLISHED[name].items():
        expected = float(value) if isinstance(value, str) and value[:1].isdigit() else value
        assert getattr(published, key) == expected, key


@pytest.mark.parametrize("name", sorted(CLASSES.keys() - {"retrieval_flickr"}))  # whose class is retrieval_coco's
def test_defaults_are_the_published_values(name: str) -> None:
    shipped = load_settings(CLASSES[name], CONFIGS / f"{name}.yaml").model_dump(exclude=set(PATHS))
    assert CLASSES[name]().model_dump(exclude=set(PATHS)) == shipped


def test_pretraining_starts_from_the_published_image_encoders() -> None:
    assert PretrainSettings().vit_source == VIT_BASE
    assert PretrainSettings(vit="large").vit_source == VIT_LARGE
    assert PretrainSettings(init_vit="own.pth").vit_source == "own.pth"


def test_our_own_keys_change_nothing_by_default() -> None:
    settings = PretrainSettings()
    assert (settings.precision, settings.accumulate, settings.clip_norm, settings.numerics) == (
        "fp32",
        1,
        0,
        "published",
    )
    config = settings.blip_config()
    assert (config.vit_width, config.image_size, config.queue_size, config.drop_path) == (768, 224, 57600, 0.0)
    assert VQASettings(vit="large").blip_config().vit_width == 1024
    assert NLVRSettings().blip_config().drop_path == 0.1


def test_every_problem_is_named_with_the_nearest_key(tmp_path: Path) -> None:
    overrides = ["bach_size=3", "model.text_layer=2", "init_lr=.nan", "vit=huge", "workers=-1", "accumulate=0"]
    with pytest.raises(SettingsError) as error:
        load_settings(PretrainSettings, CONFIGS / "pretrain.yaml", overrides)
    for part in (
        "unknown key 'bach_size'; did you mean 'batch_size'?",
        "has no field 'text_layer'; did you mean 'text_layers'?",
        "init_lr=nan: input should be a finite number",
        "vit='huge': input should be 'base' or 'large'",
        "workers=-1: input should be greater than or equal to 0",
        "accumulate=0: input should be greater than or equal to 1",
    ):
        assert part in str(error.value)


def test_overrides_are_yaml_values(tmp_path: Path) -> None:
    overrides = ["init_lr=2e-4", "train_file=[a.json]", "vit_grad_ckpt=True", "pretrained=", "model.text_layers=2",
                 "model.vit_depth=3", "laion_path=a=b"]  # fmt: skip
    settings = load_settings(PretrainSettings, CONFIGS / "pretrain.yaml", overrides)
    assert (settings.init_lr, settings.train_file, settings.vit_grad_ckpt) == (2e-4, ["a.json"], True)
    assert settings.model == {"text_layers": 2, "vit_depth": 3}
    assert (settings.pretrained, settings.laion_path) == ("", "a=b")
    for override, message in (("init_lr", "expected key=value"), ("=3", "expected key=value"), ("vit=[", "no YAML"),
                              ("vit.x=1", "vit has no fields")):  # fmt: skip
        with pytest.raises(SettingsError, match=message):
            load_settings(PretrainSettings, CONFIGS / "pretrain.yaml", [override])


def test_fields_of_the_model_are_numbers(tmp_path: Path) -> None:
    overrides = ["model.text_layer_norm_eps=1e-12", "model.text_layers='2'"]
    settings = load_settings(PretrainSettings, CONFIGS / "pretrain.yaml", overrides)
    assert settings.model == {"text_layer_norm_eps": 1e-12, "text_layers": 2}
    assert settings.blip_config().text_layer_norm_eps == 1e-12
    for value, message in (("1.5", "has text_layers=1.5; expected a whole number"), ("many", "has text_layers='many'")):
        with pytest.raises(SettingsError, match=message):
            load_settings(PretrainSettings, CONFIGS / "pretrain.yaml", [f"model.text_layers={value}"])
    with pytest.raises(ValueError, match="text_layers=True"):
        PretrainSettings(model={"text_layers": True}).blip_config()


def test_settings_are_written_as_they_are_read(tmp_path: Path) -> None:
    settings = PretrainSettings(train_file=["ä.json"], model={"momentum": 0.9}, init_lr=1e-5)
    write_settings(settings, tmp_path / "config.yaml")
    assert load_settings(PretrainSettings, tmp_path / "config.yaml") == settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "holds a list"),
        ("a: [", "is no YAML"),
        ("", "holds a NoneType"),
        ("!!python/object/apply:os.system ['true']", "is no YAML"),
        ("1: 2", "has the key 1; expected a name"),
        ("[" * 5000, "is no YAML"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(SettingsError, match=message):
        load_settings(PretrainSettings, tmp_path / "x.yaml")


def test_a_name_without_a_file_is_the_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(Path("./configs/vqa.yaml")) == CONFIGS / "vqa.yaml"
    assert find_config(Path("configs/Pretrain.yaml")) == CONFIGS / "pretrain.yaml"
    own = write(tmp_path / "vqa.yaml", PUBLISHED["vqa"])
    assert find_config(own) == own
    with pytest.raises(SettingsError, match=r"config='other\.yaml' is no file"):
        find_config(Path("other.yaml"))
