"""The page of `blip-fast serve`: captions, questions and matches in a browser, without any network but the visitor's own."""

from __future__ import annotations

import html
import json
import math
import os
from collections.abc import Callable
from importlib import resources
from typing import Any

# Before gradio is imported: it reports its use to its makers otherwise.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
from fastapi import FastAPI, Request, Response
from gradio_client.utils import is_file_obj_with_meta, traverse
from PIL import Image

from blip_fast.data.demo_pairs import demo_root
from blip_fast.data.pictures import MAX_BYTES, BrokenSampleError
from blip_fast.inference.checkpoint import DEMO_FOLDER
from blip_fast.inference.inputs import is_address
from blip_fast.inference.page_models import PageModel, PageModels

# A browser that obeys it asks nobody but this server for anything.
CONTENT_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self' data: blob:"
)
_KEEP_UPLOADS = (3600, 86400)  # seconds: look once an hour for pictures older than a day
# Threads of different buttons would capture CUDA graphs at once, and run kernels during each other's captures.
_ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
_FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
_MONOSPACE = ("ui-monospace", "Menlo", "Consolas", "monospace")
_CSS = resources.files(__package__).joinpath("page.css")


def page_app(models: PageModels) -> FastAPI:
    """The page as a web application."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def stay_here(request: Request, call_next: Callable[[Request], Any]) -> Response:
        if "://" in request.scope["path"]:  # gradio would fetch the address after "file=" and hand it on
            return Response(status_code=403)
        response: Response = await call_next(request)
        response.headers["Content-Security-Policy"] = CONTENT_POLICY
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    theme = gr.themes.Default(primary_hue="teal", neutral_hue="slate", font=_FONT, font_mono=_MONOSPACE)
    css = _CSS.read_text(encoding="utf-8")
    return gr.mount_gradio_app(
        app,
        build_page(models),
        path="/",
        theme=theme,
        css=css,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        show_error=True,
        max_file_size=MAX_BYTES,
    )


class UploadsOnly(gr.Blocks):
    """A page that takes files from its visitors, but none that they only name: no file of the server, no address."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.has_launched = True  # a mounted page is never launched, and gradio checks the paths of launched ones only

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *rest: Any, **named: Any) -> list[Any]:
        """What a button's function gets; gr.Error for an address, which gradio would fetch, whatever input it is in."""
        traverse(inputs, refuse_address, is_file_obj_with_meta)
        return await super().preprocess_data(block_fn, inputs, *rest, **named)


def refuse_address(file: dict[str, Any]) -> None:
    """gr.Error where the file that a visitor sends is an address."""
    if is_address(file["path"]):
        raise gr.Error("addresses are not fetched here; expected an uploaded picture", print_exception=False)


def build_page(models: PageModels) -> gr.Blocks:
    """Three tabs; the tab of a model that is missing says why."""
    with UploadsOnly(title="blip_fast", analytics_enabled=False, delete_cache=_KEEP_UPLOADS) as page:
        gr.HTML(header(models))
        with gr.Tab("Caption"):
            tab(models.captioner, lambda: caption_tab(models))
        with gr.Tab("Question"):
            tab(models.vqa, lambda: question_tab(models))
        with gr.Tab("Match"):
            tab(models.itm, lambda: match_tab(models))
    return page


def header(models: PageModels) -> str:
    """Title, and what a visitor should know about the models."""
    notes = {model.note for model in (models.captioner, models.vqa, models.itm) if model.note}
    marked = "".join(f'<p class="note">{html.escape(note[0].upper() + note[1:])}.</p>' for note in sorted(notes))
    return f'<h1>blip_fast</h1><p class="lead">What is on a picture, in words.</p>{marked}'


def tab(model: PageModel, fill: Callable[[], None]) -> None:
    """A tab's content, or the reason why there is none."""
    if model.missing is not None:
        gr.HTML(f'<p class="note">This needs a model that is not here: {html.escape(model.missing)}.</p>')
        return
    fill()
    gr.HTML(f'<p class="source">Model: {html.escape(model.source)}</p>')


def caption_tab(models: PageModels) -> None:
    """Picture in, caption out."""
    with gr.Row(equal_height=False):
        with gr.Column():
            image = picture_input()
            prompt = gr.Textbox(label="Begin with", placeholder="the usual prompt", max_lines=1)
            how = gr.Radio(["Beam search", "Nucleus sampling"], value="Beam search", label="How")
            seed = gr.Number(0, label="Seed", precision=0, visible=False)
            button = gr.Button("Write a caption", variant="primary")
            picture_examples(models.captioner, image)
        with gr.Column():
            text = gr.Textbox(label="Caption", lines=3, interactive=False, elem_classes="result")
            confidence = gr.Textbox(label="Confidence", interactive=False)
    how.change(lambda choice: gr.Number(visible=choice != "Beam search"), how, seed, api_visibility="private")

    def run(path: str | None, prompt: str, how: str, seed: float) -> tuple[str, str]:
        found, score = answered(path, lambda p: models.caption(p, prompt or None, how != "Beam search", int(seed or 0)))
        return found, per_token(score)

    button.click(run, [image, prompt, how, seed], [text, confidence], api_name="caption", **_ONE_AT_A_TIME)


def question_tab(models: PageModels) -> None:
    """Picture and question in, answer out."""
    with gr.Row(equal_height=False):
        with gr.Column():
            image = picture_input()
            question = gr.Textbox(label="Question", placeholder="How many people are there?", max_lines=2)
            button = gr.Button("Answer", variant="primary")
            picture_examples(models.vqa, image)
        with gr.Column():
            text = gr.Textbox(label="Answer", lines=2, interactive=False, elem_classes="result")
            confidence = gr.Textbox(label="Confidence", interactive=False)

    def run(path: str | None, question: str) -> tuple[str, str]:
        found, score = answered(path, lambda p: models.answer(p, needed(question, "a question")))
        return found, per_token(score)

    gr.on(
        [button.click, question.submit],
        run,
        [image, question],
        [text, confidence],
        api_name="question",
        **_ONE_AT_A_TIME,
    )


def match_tab(models: PageModels) -> None:
    """Picture and text in, probability, similarity and heat maps out."""
    with gr.Row(equal_height=False):
        with gr.Column():
            image = picture_input()
            text = gr.Textbox(label="Text", placeholder="a dog on a beach", max_lines=2)
            button = gr.Button("Compare", variant="primary")
            picture_examples(models.itm, image)
        with gr.Column():
            with gr.Row():
                itm = gr.Textbox(label="Probability of a match", interactive=False, elem_classes="result")
                cosine = gr.Textbox(label="Cosine of the features", interactive=False, elem_classes="result")
            heat = gr.Image(label="Where the text finds it", interactive=False, height=320, format="png", buttons=[])
            words = gr.Gallery(label="Word by word", columns=4, height="auto", format="png", buttons=[])
            gr.HTML(
                '<p class="source">Grad-CAM of the matching head: gradient times cross-attention, mean over heads.</p>'
            )

    def run(path: str | None, text: str) -> tuple[str, str, Image.Image, list[tuple[Image.Image, str]]]:
        found = answered(path, lambda p: models.match(p, needed(text, "a text")))
        return f"{found.itm:.1%}", f"{found.cosine:.3f}", found.whole, found.words

    shown = [itm, cosine, heat, words]
    gr.on([button.click, text.submit], run, [image, text], shown, api_name="match", **_ONE_AT_A_TIME)


def picture_input() -> gr.Image:
    """A picture from the visitor, as a file that is decoded here, within limits, and not by gradio."""
    image = gr.Image(label="Picture", type="filepath", sources=["upload", "clipboard"], height=280)
    image.preprocess = lambda payload: None if payload is None else payload.path  # type: ignore[method-assign]
    return image


def picture_examples(model: PageModel, image: gr.Image) -> None:
    """Bundled pictures, to be chosen with a click."""
    gr.Examples([[path] for path in bundled_pictures(model)], image, label="Pictures to try", cache_examples=False)


def bundled_pictures(model: PageModel) -> list[str]:
    """Pictures like those that the model has seen: drawings for the demo's, photographs for others."""
    listed = "test.json" if model.source == str(DEMO_FOLDER) else "photos.json"
    records = json.loads((demo_root() / listed).read_text(encoding="utf-8"))
    return [str(demo_root() / record["image"]) for record in records[:: max(len(records) // 6, 1)][:6]]


def answered(path: str | None, work: Callable[[str], Any]) -> Any:
    """What ``work`` makes of a picture; what is wrong with it becomes a message on the page."""
    try:
        return work(needed(path, "a picture"))
    except (BrokenSampleError, ValueError) as error:
        raise gr.Error(html.escape(str(error)), print_exception=False) from error


def needed(value: str | None, what: str) -> str:
    """The value; ValueError where there is none."""
    if not value or not value.strip():
        raise ValueError(f"choose {what} first")
    return value


def per_token(score: float) -> str:
    """A mean log-probability in words."""
    return f"{math.exp(score):.0%} per token (mean log-probability {score:.2f})"
