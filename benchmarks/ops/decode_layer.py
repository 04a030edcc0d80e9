"""A step of decoding through four layers of the text decoder: torch's products and SDPA, operations one by one, one call.

One caption, and four images of three beams, each at its eleventh token, look at 577 tokens of an image. The four layers have
132 MB of weights, so that they come from memory as they do in a whole decoder; reading them is what takes time.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

import blip_fast
from blip_fast.config import BlipConfig
from blip_fast.generation.session import DecodingSession
from blip_fast.reference.decode_layer import LayerParameters
from blip_fast.reference.decoder import TextDecoder

from ..job import Aim, Case, Setting, Variant

PLACE = 67
LAYERS, TOKENS, PAST, PLACES = 4, 577, 10, 20


def cases(setting: Setting) -> Iterable[Case]:
    """One text and twelve; on a GPU nothing, since a step is a CUDA graph there (`captioning`)."""
    if setting.device.type == "cpu":
        torch.manual_seed(0)
        decoder = TextDecoder(BlipConfig.base(text_layers=LAYERS)).eval()
        for images, beams in ((1, 1), (4, 3)):
            yield _case(decoder, images, beams)


def _case(decoder: TextDecoder, images: int, beams: int) -> Case:
    states = torch.randn(images, TOKENS, decoder.bert.encoder.layer[0].crossattention.self.key.in_features)
    rows, width = images * beams, decoder.bert.encoder.layer[0].attention.self.query.out_features
    with torch.no_grad():
        whole = _session(decoder, states, beams)
        with blip_fast.backend("reference", op="decode_layer"):
            parts = _session(decoder, states, beams)
    parameters = parts.parameters
    weights = sum(tensor.numel() for layer in parameters for tensor in layer)

    def inputs(seed: int) -> tuple[Tensor]:
        return (torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)),)

    def exact(hidden: Tensor) -> Tensor:
        doubles = [LayerParameters(*(tensor.double() for tensor in layer)) for layer in parameters]
        return eager(parts, doubles, hidden.double())

    return Case(
        name=f"{'1 image, greedy' if rows == 1 else f'{images} images, {beams} beams'}, {LAYERS} layers, float32",
        inputs=inputs,
        variants=[
            Variant("F.linear, SDPA", functools.partial(eager, parts, parameters), role="baseline"),
            Variant("blip_fast, one by one", torch.inference_mode()(parts.run_layers_in_parts)),
            Variant(
                "blip_fast",
                torch.inference_mode()(whole.run_kernel),
                role="ours",
                unavailable=blip_fast.backends()["decode_layer"]["cpu"],
            ),
        ],
        truth=exact,
        tolerance=1e-5,
        flops=2 * rows * weights + 4 * rows * width * LAYERS * (TOKENS + PAST + 1),
        bytes=4 * (weights + 2 * images * TOKENS * width * LAYERS),
        aims=[Aim(1.5, over="F.linear, SDPA")],
    )


def _session(decoder: TextDecoder, states: Tensor, beams: int) -> DecodingSession:
    """A session whose texts have read PAST tokens."""
    session = DecodingSession(decoder, states, beams, PLACES)
    session.cache.normal_(generator=torch.Generator().manual_seed(1))
    session.lengths.fill_(PAST)
    session.longest = PAST + 1
    return session


@torch.inference_mode()
def eager(session: DecodingSession, parameters: Sequence[LayerParameters], hidden: Tensor) -> Tensor:
    """The layers on torch's products, SDPA and LayerNorm; the beams of an image share its keys in one SDPA."""
    heads, dim = session.cache.shape[-2:]
    norm = functools.partial(F.layer_norm, normalized_shape=hidden.shape[1:], eps=1e-12)
    for index, p in enumerate(parameters):
        cache = session.cache[index].to(hidden.dtype)
        query, key, value = (
            F.linear(hidden, weight, bias).unflatten(1, (heads, dim))
            for weight, bias in ((p.query, p.query_bias), (p.key, p.key_bias), (p.value, p.value_bias))
        )
        cache[:, session.slots, PAST] = torch.stack([key, value])
        past = cache[:, session.ancestry[:, : PAST + 1], torch.arange(PAST + 1)].transpose(2, 3)
        attended = F.scaled_dot_product_attention(query[:, :, None], past[0], past[1]).flatten(1)
        hidden = norm(F.linear(attended, p.output, p.output_bias) + hidden, weight=p.norm, bias=p.norm_bias)
        query = F.linear(hidden, p.image_query, p.image_query_bias).view(session.images, -1, heads, dim).transpose(1, 2)
        key, value = (part.to(hidden.dtype).transpose(1, 2) for part in session.projected[index])
        seen = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(hidden.shape)
        seen = F.linear(seen, p.image_output, p.image_output_bias)
        hidden = norm(seen + hidden, weight=p.image_norm, bias=p.image_norm_bias)
        inner = F.linear(F.gelu(F.linear(hidden, p.up, p.up_bias)), p.down, p.down_bias)
        hidden = norm(inner + hidden, weight=p.last_norm, bias=p.last_norm_bias)
    return hidden
