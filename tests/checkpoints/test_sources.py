"""Where checkpoints are looked for, with stand-ins for the network."""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file

from blip_fast.checkpoints import sources
from blip_fast.checkpoints.sources import PUBLISHED_NAMES, locate
from tests.checkpoints.common import CLASSES, assert_same_state, build


def test_paths_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model_base.pth").touch()
    Path("owner/name").mkdir(parents=True)
    assert locate("model_base.pth") == Path("model_base.pth")
    assert locate(Path("owner/name")) == Path("owner/name")


@pytest.mark.parametrize("source", ["model_base_nlvr", "model_base_nlvr.pth", "https://example.org/a/model.pth"])
def test_addresses_are_fetched_once(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []

    def download(address: str, target: str) -> None:
        fetched.append(address)
        torch.save({"model": build("nlvr").state_dict()}, target)

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        assert_same_state(CLASSES["nlvr"].from_pretrained(source), build("nlvr"))
    published = "https://storage.googleapis.com/sfr-vision-language-research/BLIP/models/model_base_nlvr.pth"
    assert fetched == [source if source.startswith("https") else published]


def test_addresses_with_one_file_name_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda address, target: Path(target).write_text(address))
    for folder in "ab":
        address = f"https://example.org/{folder}/model.pth?download=1"
        assert locate(address).read_text() == address
        assert locate(address).suffix == ".pth"


def test_published_names() -> None:
    assert len(set(PUBLISHED_NAMES)) == 13
    assert not any(name.endswith(".pth") for name in PUBLISHED_NAMES)


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_hub_ids(weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("itm")
    model.save_pretrained(tmp_path, "hf")
    if weights == "pytorch_model.bin":
        torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / weights)
        (tmp_path / "model.safetensors").unlink()

    def download(repository: str, name: str) -> str:
        assert repository == "Salesforce/blip-itm-base-coco"
        if not (tmp_path / name).exists():
            raise EntryNotFoundError(name)
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert_same_state(CLASSES["itm"].from_pretrained("Salesforce/blip-itm-base-coco"), model)


def test_unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for source in ("model_base", "https://example.org/model.pth", "Salesforce/no-such-model"):
        with pytest.raises(FileNotFoundError, match=r"is no path on this machine and could not be fetched \(\w+\)$"):
            locate(source)
    for source in (tmp_path / "missing", "missing.pth", "folder/missing.pth", "one/two/three"):
        with pytest.raises(FileNotFoundError, match=r"there is no '.*'; expected a file, a folder, an address"):
            locate(source)


def test_a_server_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(sources, "_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/model.pth"
        with pytest.raises(FileNotFoundError, match="could not be fetched"):
            locate(address)
    assert socket.getdefaulttimeout() is None
