"""`blip-fast serve`: a page to look at, on this machine."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import click

from blip_fast.cli.options import PRECISIONS, checked_device, tell

if TYPE_CHECKING:
    from blip_fast.inference.checkpoint import Precision


@click.command()
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    help="May be repeated: each tab takes the first that serves it; by default the published ones.",
)
@click.option("--device", default=None, help="torch device; by default cuda where there is one, else cpu.")
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 lets other machines in.")
@click.option("--port", type=click.IntRange(0, 65535), default=7860, show_default=True, help="0 takes a free one.")
def command(checkpoints: tuple[str, ...], device: str | None, precision: Precision, host: str, port: int) -> None:
    """Open a page for captions, questions, and matches with a heat map of where the text finds its match.

    It needs no network, fetches nothing from other servers, and is seen on this machine only unless --host says otherwise.
    """
    if importlib.util.find_spec("gradio") is None:
        raise click.ClickException("gradio is not installed; the page needs it: pip install 'blip_fast[serve]'")
    import socket

    import uvicorn

    from blip_fast.inference.page import page_app
    from blip_fast.inference.page_models import PageModels

    try:
        listening = socket.create_server((host, port))
    except OSError as error:
        raise click.ClickException(
            f"cannot listen at {host}:{port}: {error.strerror}; expected an address of this machine and a free --port"
        ) from error
    with listening:
        models = PageModels.open(checkpoints, checked_device(device), precision)
        for model in (models.captioner, models.vqa, models.itm):
            if model.note or model.missing:
                tell(model.note or model.missing or "")
        shown = f"[{host}]" if ":" in host else host
        tell(f"http://{shown}:{listening.getsockname()[1]}")
        uvicorn.Server(uvicorn.Config(page_app(models), log_level="warning")).run(sockets=[listening])
