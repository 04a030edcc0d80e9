"""How well texts match a picture, by both heads that can tell: image-text matching and the contrastive similarity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from blip_fast.models import BlipITM
from blip_fast.models.strings import pack_texts

FirstToken = Literal["enc", "cls"]


@torch.inference_mode()
def matches(
    model: BlipITM, image: Tensor, texts: Sequence[str], first_token: FirstToken = "enc"
) -> list[dict[str, Any]]:
    """A record {"text", "itm", "cosine"} for each text with image (3, S, S).

    ``itm`` is the matching head's probability of a match, ``cosine`` the similarity of projected features.

    Args:
        first_token: what texts begin with for the matching head: "enc", [ENC], as it was trained and as LAVIS does, or
            "cls", [CLS], as the published ``BLIP_ITM`` does.
    """
    packed = pack_texts(texts, None, "itm", model, image.device)
    grounded = packed.with_first_token(model.config.enc_token_id) if first_token == "enc" else packed
    probabilities = model.itm(image[None], grounded).float().softmax(dim=1)[:, 1].tolist()
    cosines = model.itc(image[None], packed)[0].float().tolist()
    return [
        {"text": text, "itm": round(itm, 5), "cosine": round(cosine, 5)}
        for text, itm, cosine in zip(texts, probabilities, cosines, strict=True)
    ]
