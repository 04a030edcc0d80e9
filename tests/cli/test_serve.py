"""`blip-fast serve`: the page in a headless browser without network, and what stands behind its buttons."""

from __future__ import annotations

import html
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from blip_fast.cli import main
from tests.inference.common import picture, save

pytest.importorskip("gradio", reason="the page needs gradio")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ATTACK = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page with a pre-trained model, which cannot answer questions, in a folder of a hostile name."""
    import uvicorn

    from blip_fast.inference.page import page_app
    from blip_fast.inference.page_models import PageModels

    checkpoint = save(tmp_path_factory.mktemp("model") / ATTACK, "BlipPretrain", text_layers=3)
    models = PageModels.open([checkpoint], torch.device("cpu"))
    with pytest.MonkeyPatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as listening:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        server = uvicorn.Server(uvicorn.Config(page_app(models), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.should_exit = True
        thread.join(20)


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine")
def test_page_in_a_browser_that_reaches_nothing_else(address: str, tmp_path: Path) -> None:
    shot = tmp_path / "page.png"
    common = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1200,1000",
        "--virtual-time-budget=20000",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    assert BROWSER is not None
    done = subprocess.run(
        [BROWSER, *common, f"--screenshot={shot}", "--dump-dom", address], capture_output=True, text=True, timeout=300
    )
    text = done.stdout
    for part in ("<h1>blip_fast</h1>", "Caption", "Question", "Match", "Write a caption", "Pictures to try"):
        assert part in text, text[:2000]
    assert html.escape(ATTACK, quote=False) in text
    assert "<img src=x" not in text.lower().replace('"', "")
    loaded = re.findall(r"<(?:script|link|img)\b[^>]*?(?:src|href)=\"(https?://[^\"]+)", text)
    assert [url for url in loaded if not url.startswith(address)] == []
    assert len(Image.open(shot).convert("L").getcolors() or range(999)) > 20  # more than an empty page


def test_policy_forbids_other_servers(address: str) -> None:
    with urllib.request.urlopen(address) as answer:
        policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy


def test_buttons(address: str, tmp_path: Path) -> None:
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    client = Client(address, verbose=False, analytics_enabled=False, httpx_kwargs={"timeout": 300})
    good = handle_file(picture(tmp_path / "a.png"))
    caption, confidence = client.predict(good, "", "Beam search", 0, api_name="/caption")
    assert isinstance(caption, str)
    assert re.fullmatch(r"\d+% per token \(mean log-probability -?\d+\.\d\d\)", confidence)
    drawn = [client.predict(good, "a cat", "Nucleus sampling", seed, api_name="/caption") for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1]
    itm, cosine, heat, words = client.predict(good, f"two dogs {ATTACK}", api_name="/match")
    assert 0 <= float(itm.rstrip("%")) <= 100
    assert -1 <= float(cosine) <= 1
    assert Image.open(heat).size == (512, 384)
    assert [word["caption"] for word in words][:2] == ["two", "dogs"]
    (tmp_path / "broken.png").write_bytes(b"<svg onload=alert(1)>")
    for image, prompt, message in (
        (None, "", "choose a picture first"),
        (handle_file(tmp_path / "broken.png"), "", "is no picture in a known format"),
        (good, "cat " * 70, "expected more than the"),
    ):
        with pytest.raises(AppError, match=message):
            client.predict(image, prompt, "Beam search", 0, api_name="/caption")
    with pytest.raises(AppError, match="choose a text first"):
        client.predict(good, " ", api_name="/match")


def call(address: str, name: str, *data: Any) -> str:
    """The events that the page answers with, as any program can ask for them."""
    url, content = f"{address}gradio_api/call/{name}", json.dumps({"data": data}).encode()
    request = urllib.request.Request(url, content, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{url}/{event}", timeout=60) as answer:
        return answer.read().decode()


def named(path: object, **more: Any) -> dict[str, Any]:
    """A file as a visitor names it."""
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}, **more}


def test_visitors_cannot_name_files_of_the_server(address: str, tmp_path: Path) -> None:
    secret = picture(tmp_path / "secret.png")
    for file in (named(secret), named(secret, is_stream=True), named("/etc/passwd")):
        for answer in (
            call(address, "match", file, "two dogs"),
            call(address, "caption", None, file, "Beam search", 0),  # an input that is for no file
        ):
            assert answer.startswith("event: error")
            assert "it was not uploaded by a user" in answer


def test_visitors_cannot_make_the_server_fetch_addresses(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import safehttpx

    asked = []

    async def resolve(host: str, **named: Any) -> str:
        asked.append(host)
        raise OSError

    for name in ("get", "async_validate_url"):  # all that gradio fetches, it fetches by these
        monkeypatch.setattr(safehttpx, name, resolve)
    monkeypatch.setattr("blip_fast.inference.pictures._fetch", lambda url: asked.append(url))
    url = "https://example.org/track.png"
    for file in (named(url), named(url, is_stream=True), named(url.replace("png", "svg"), is_stream=True)):
        assert "addresses are not fetched here" in call(address, "match", file, "two dogs")
        assert "addresses are not fetched here" in call(address, "caption", None, file, "Beam search", 0)
    for path in ("file=", "file/"):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{address}gradio_api/{path}{url}")
    assert asked == []


def test_only_this_machine_is_let_in_and_used_ports_are_named() -> None:
    (host,) = [option for option in main.get_command(None, "serve").params if option.name == "host"]  # type: ignore[arg-type]
    assert host.default == "127.0.0.1"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(main, ["serve", "--port", str(port)])
    assert result.exit_code == 1
    assert f"cannot listen at 127.0.0.1:{port}" in result.output


def test_without_gradio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    result = CliRunner().invoke(main, ["serve"])
    assert result.exit_code == 1
    assert "pip install 'blip_fast[serve]'" in result.output


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; from blip_fast.cli import main; main(['--help'], standalone_mode=False); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
