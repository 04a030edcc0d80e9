"""Where checkpoints come from: paths, addresses, published file names and Hugging Face hub ids."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import shutil
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console
from rich.progress import wrap_file

from blip_fast.checkpoints.files import CONFIG_FILE, write_atomically

Source = str | os.PathLike[str]
Result = TypeVar("Result")

PUBLISHED_ADDRESS = "https://storage.googleapis.com/sfr-vision-language-research/BLIP/models/"
PUBLISHED_NAMES = (
    "model_base_14M",
    "model_base",
    "model_base_capfilt_large",
    "model_large",
    "model_base_retrieval_coco",
    "model_base_retrieval_flickr",
    "model_large_retrieval_coco",
    "model_large_retrieval_flickr",
    "model_base_caption_capfilt_large",
    "model_large_caption",
    "model_vqa",
    "model_base_vqa_capfilt_large",
    "model_base_nlvr",
)
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # in order of preference
TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "vocab.txt", "special_tokens_map.json")
_TIMEOUT = 20.0  # seconds without any answer
_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


def locate(source: Source) -> Path:
    """The file or folder that ``source`` names, fetched if it is not on this machine.

    Args:
        source: a path; an address (http or https); the name of a published file, with or without ".pth"; or the id of
            a model on the Hugging Face hub, "owner/name". What exists as a path is taken as one.

    Raises FileNotFoundError where it exists in none of these places or cannot be fetched.
    """
    text = os.fspath(source)
    if Path(text).exists():
        return Path(text)
    if text.startswith(("http://", "https://")):
        return _fetch(text, lambda: _download(text))
    if text.removesuffix(".pth") in PUBLISHED_NAMES:
        return locate(f"{PUBLISHED_ADDRESS}{text.removesuffix('.pth')}.pth")
    if _HUB_ID.fullmatch(text) and not text.endswith((".pth", ".safetensors", ".bin", ".pt")):
        return _fetch(text, lambda: _hub_folder(text))
    raise FileNotFoundError(
        f"there is no {text!r}; expected a file, a folder, an address, a published name such as "
        "'model_base_capfilt_large', or a Hugging Face id such as 'Salesforce/blip-image-captioning-base'"
    )


def weight_file(folder: Path) -> Path:
    """The file with the weights in a folder of Hugging Face's layout."""
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    sharded = next(folder.glob("*.index.json"), None)
    found = f"weights in several files ({sharded.name})" if sharded else "no weights"
    raise FileNotFoundError(f"{folder} has {found}; expected one of {', '.join(WEIGHT_FILES)}")


def _fetch(source: str, fetch: Callable[[], Path]) -> Path:
    try:
        return fetch()
    # Of urllib, and all errors of huggingface_hub that concern network, ids and files; what is no answer in HTTP.
    except (OSError, http.client.HTTPException) as error:
        raise FileNotFoundError(
            f"{source!r} is no path on this machine and could not be fetched ({type(error).__name__})"
        ) from error


def _download(address: str) -> Path:
    """Fetch into torch's cache of checkpoints, once; published files have the name there that the published code gives."""
    name = urllib.parse.urlsplit(address).path.rsplit("/", 1)[-1]
    if not address.startswith(PUBLISHED_ADDRESS):  # other files of one name must not be taken for each other
        name = f"{hashlib.sha256(address.encode()).hexdigest()[:16]}-{name}"
    target = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not target.exists():
        write_atomically(target, lambda part: _receive(address, part))
    return target


def _receive(address: str, path: Path) -> None:
    """Write what ``address`` answers to ``path``. OSError where the answer ends early, which urllib lets pass."""
    request = urllib.request.Request(address, headers={"User-Agent": "blip_fast"})  # some servers refuse urllib's own
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as reply, path.open("wb") as file:
        size = int(reply.headers.get("Content-Length") or 0)
        with wrap_file(reply, size, description=path.name, console=Console(stderr=True), transient=True) as reader:
            shutil.copyfileobj(reader, file, 1 << 20)
        if size and file.tell() != size:
            raise OSError(f"{address} ended after {file.tell()} of {size} bytes")


def _hub_folder(repository: str) -> Path:
    """Fetch configuration, weights and tokenizer of a model into the hub's cache; the folder that holds them."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    folder = Path(hf_hub_download(repository, CONFIG_FILE)).parent
    try:
        hf_hub_download(repository, WEIGHT_FILES[0])
    except EntryNotFoundError:
        hf_hub_download(repository, WEIGHT_FILES[1])
    for name in TOKENIZER_FILES:  # published models have BLIP's, which is not read
        with contextlib.suppress(EntryNotFoundError):
            hf_hub_download(repository, name)
    return folder
