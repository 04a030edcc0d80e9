"""Where checkpoints are looked for, with stand-ins for the network."""

from __future__ import annotations

import shutil
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file
from transformers import AutoTokenizer

from blip_fast.checkpoints import sources
from blip_fast.checkpoints.sources import PUBLISHED_NAMES, locate
from blip_fast.checkpoints.tokenizers import has_tokenizer
from blip_fast.data.tokens import cached_tokenizer
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

    def receive(address: str, path: Path) -> None:
        fetched.append(address)
        torch.save({"model": build("nlvr").state_dict()}, path)

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(sources, "_receive", receive)
    for _ in range(2):
        assert_same_state(CLASSES["nlvr"].from_pretrained(source), build("nlvr"))
    published = "https://storage.googleapis.com/sfr-vision-language-research/BLIP/models/model_base_nlvr.pth"
    assert fetched == [source if source.startswith("https") else published]


def test_addresses_with_one_file_name_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(sources, "_receive", lambda address, path: path.write_text(address))
    for folder in "ab":
        address = f"https://example.org/{folder}/model.pth?download=1"
        assert locate(address).read_text() == address
        assert locate(address).suffix == ".pth"


def test_published_names() -> None:
    assert len(set(PUBLISHED_NAMES)) == 13
    assert not any(name.endswith(".pth") for name in PUBLISHED_NAMES)


class Hub:
    """Stands in for hf_hub_download: copies the files that are asked for, one by one, to a cache."""

    def __init__(self, repository: Path, cache: Path) -> None:
        self.repository, self.cache = repository, cache

    def __call__(self, repository: str, name: str) -> str:
        assert repository == "Salesforce/blip-itm-base-coco"
        if not (self.repository / name).exists():
            raise EntryNotFoundError(name)
        self.cache.mkdir(exist_ok=True)
        return str(shutil.copy(self.repository / name, self.cache / name))


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_hub_ids(weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, repository = build("itm"), tmp_path / "repository"
    model.save_pretrained(repository, "hf")
    if weights == "pytorch_model.bin":
        torch.save(load_file(repository / "model.safetensors"), repository / weights)
        (repository / "model.safetensors").unlink()
    monkeypatch.setattr("huggingface_hub.hf_hub_download", Hub(repository, tmp_path / "cache"))
    assert_same_state(CLASSES["itm"].from_pretrained("Salesforce/blip-itm-base-coco"), model)


def test_a_model_on_the_hub_brings_its_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("itm")
    model.tokenizer = cached_tokenizer()
    model.save_pretrained(tmp_path / "repository", "hf")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", Hub(tmp_path / "repository", tmp_path / "cache"))
    folder = locate("Salesforce/blip-itm-base-coco")
    assert has_tokenizer(folder)
    assert AutoTokenizer.from_pretrained(folder)("two dogs").input_ids == model.tokenizer("two dogs").input_ids


def test_unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(sources.urllib.request, "urlopen", offline)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for source in ("model_base", "https://example.org/model.pth", "Salesforce/no-such-model"):
        with pytest.raises(FileNotFoundError, match=r"is no path on this machine and could not be fetched \(\w+\)$"):
            locate(source)
    for source in (tmp_path / "missing", "missing.pth", "folder/missing.pth", "one/two/three"):
        with pytest.raises(FileNotFoundError, match=r"there is no '.*'; expected a file, a folder, an address"):
            locate(source)


@pytest.mark.parametrize(
    "answer",
    [b"", b"garbage\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\ntoo little",
     b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\ntoo little"],
    ids=["nothing", "no HTTP", "ends early", "chunk ends early"],
)  # fmt: skip
def test_a_damaged_answer_is_not_kept(answer: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as thread:
        thread.submit(answer_once, server, answer)
        with pytest.raises(FileNotFoundError, match="could not be fetched"):
            locate(f"http://127.0.0.1:{server.getsockname()[1]}/model.pth")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_whole_answer_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as thread:
        thread.submit(answer_once, server, b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nweights")
        address = f"http://127.0.0.1:{server.getsockname()[1]}/model.pth"
        assert locate(address).read_bytes() == b"weights"
    assert locate(address).read_bytes() == b"weights"  # the server is gone


def answer_once(server: socket.socket, answer: bytes) -> None:
    connection, _ = server.accept()
    with connection:
        assert b"User-Agent: blip_fast" in connection.recv(4096)
        connection.sendall(answer)


def test_a_server_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(sources, "_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/model.pth"
        with pytest.raises(FileNotFoundError, match="could not be fetched"):
            locate(address)
