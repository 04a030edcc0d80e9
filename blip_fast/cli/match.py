"""`blip-fast match`: how well texts match an image, as JSON lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from blip_fast.cli.options import FLOAT_PRECISIONS, load_chosen, model_options, one_sentence_errors

if TYPE_CHECKING:
    from blip_fast.inference.checkpoint import Precision
    from blip_fast.inference.matching import FirstToken


@click.command()
@click.argument("image")
@click.argument("texts", nargs=-1, required=True)
@model_options(FLOAT_PRECISIONS)
@click.option("--allow-remote", is_flag=True, help="Fetch IMAGE if it is an http or https address.")
@click.option(
    "--first-token",
    type=click.Choice(["enc", "cls"]),
    default="enc",
    show_default=True,
    help="What the matching head's texts begin with: [ENC] as in training, or [CLS] as in the published BLIP_ITM.",
)
def command(
    image: str,
    texts: tuple[str, ...],
    checkpoint: str | None,
    device: str | None,
    precision: Precision,
    allow_remote: bool,
    first_token: FirstToken,
) -> None:
    """Tell how well TEXTS match IMAGE, one JSON object a line: {"image", "text", "itm", "cosine"}.

    itm is the probability that the matching head gives, cosine the similarity of the contrastive features.
    """
    from blip_fast.inference.inputs import Inputs
    from blip_fast.inference.matching import matches
    from blip_fast.inference.pictures import normalised, one_picture
    from blip_fast.inference.records import RecordFile
    from blip_fast.models import BlipITM

    with one_sentence_errors():
        wanted, records = Inputs([image], allow_remote=allow_remote), RecordFile(None)
        model = load_chosen(BlipITM, checkpoint, device, precision)
        pixels = normalised(one_picture(wanted, model.config.image_size), model.visual_encoder.cls_token)
        for record in matches(model, pixels, texts, first_token):
            records.write([{"image": image} | record])
