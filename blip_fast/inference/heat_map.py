"""Heat maps of a match laid over the picture: one for the whole text, one for each of its words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from blip_fast.data.tokens import tokenize
from blip_fast.inference.pictures import PictureDataset, normalised
from blip_fast.models import BlipITM
from blip_fast.models.grad_cam import match_heat_maps
from blip_fast.reference.text import with_first_token

_OPACITY = 0.6
_LONGEST_SIDE = 512


@dataclass(frozen=True)
class TextHeat:
    """Where a text looks: maps (rows, columns) over the patches, in [0, 1], of the whole text and of each word."""

    whole: Tensor
    words: list[tuple[str, Tensor]]


def text_heat(model: BlipITM, picture: Image.Image, text: str) -> TextHeat:
    """Grad-CAM of one text, which begins with [ENC]; see :func:`match_heat_maps`.

    A word's map is the sum of its pieces'; the whole text's is the mean over all tokens. Each is scaled to a maximum of 1.
    Punctuation counts in the latter only.
    """
    weight = model.visual_encoder.cls_token
    pixels = PictureDataset(model.config.image_size).transform(picture)
    ids, mask = (part.to(weight.device) for part in tokenize([text], "itm", model.tokenizer))
    count = int(mask.sum())
    ids, mask = with_first_token(ids[:, :count], model.config.enc_token_id), mask[:, :count]
    maps = match_heat_maps(model, normalised(pixels[None], weight), ids, mask)[0].cpu()
    words: list[tuple[str, Tensor]] = []
    for token, token_map in zip(model.tokenizer.convert_ids_to_tokens(ids[0, 1:-1]), maps[1:-1], strict=True):
        if token.startswith("##") and words:
            word, word_map = words.pop()
            words.append((word + token[2:], word_map + token_map))
        else:
            words.append((token, token_map))
    return TextHeat(scaled(maps.mean(0)), [(word, scaled(word_map)) for word, word_map in words if word.isalnum()])


def scaled(heat: Tensor) -> Tensor:
    """A map with a maximum of 1; one of zeros stays."""
    return heat / heat.amax().clamp(min=torch.finfo(heat.dtype).tiny)


def overlay(picture: Image.Image, heat: Tensor) -> Image.Image:
    """The picture, 512 pixels long, under a map (rows, columns) in [0, 1]: the hotter, the less of it shows."""
    scale = _LONGEST_SIDE / max(picture.size)
    width, height = (max(round(side * scale), 1) for side in picture.size)
    shown = picture.resize((width, height), Image.Resampling.BICUBIC)
    below = np.asarray(shown, dtype=np.float32)
    grey = Image.fromarray((heat * 255).to(torch.uint8).numpy())
    values = np.asarray(grey.resize(shown.size, Image.Resampling.BICUBIC), dtype=np.float32) / 255
    colours = colormaps["turbo"](values)[..., :3].astype(np.float32) * 255
    opacity = _OPACITY * values[..., None]
    return Image.fromarray((below * (1 - opacity) + colours * opacity).round().astype(np.uint8))
