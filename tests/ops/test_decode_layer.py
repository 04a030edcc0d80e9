"""decode_layer: the decoder's own layer, float64, ancestry, rows that do not depend on each other, opcheck, errors."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import blip_fast
from blip_fast.config import BlipConfig
from blip_fast.generation.int8 import to_int8
from blip_fast.generation.session import DecodingSession
from blip_fast.models import BlipCaptioner
from blip_fast.ops import decode_layer, group_rows
from blip_fast.ops.decode_layer import _operation, layer_kernel
from blip_fast.reference.decode_layer import LayerParameters
from blip_fast.reference.decoder import TextDecoder

BACKENDS = [name for name in ("reference", "cpu") if _operation.unavailable(name) is None]
needs_native = pytest.mark.skipif("cpu" not in BACKENDS, reason="the native library is not built")


class Shape(NamedTuple):
    """Texts' lengths before the token, the image each looks at, heads, their size, image tokens, places of the cache."""

    lengths: tuple[int, ...]
    images: tuple[int, ...]
    heads: int = 2
    dim: int = 16
    keys: int = 37
    places: int = 9


SHAPES = {
    "one text": Shape((4,), (0,)),
    "first token": Shape((0, 0), (0, 1)),
    "beams": Shape((5,) * 6, (0, 0, 0, 1, 1, 1)),
    "ragged, an image without texts": Shape((8, 0, 3), (2, 0, 0)),
    "many texts": Shape(tuple(range(30)) * 2, (0, 1) * 30, places=31),
    "long texts": Shape((299, 130), (0, 1), places=300),
    "head size 20": Shape((3, 7), (0, 1), heads=3, dim=20),
    "as BLIP-base": Shape((12, 3), (0, 0), heads=12, dim=64, keys=577, places=20),
    "no text": Shape((), ()),
}
ALL_SHAPES = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def parameters_of(width: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> LayerParameters:
    """A layer's parameters: norms around 1 and 0, products that keep the scale."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"up": (4 * width, width), "up_bias": (4 * width,), "down": (width, 4 * width)}
    made = {}
    for name in LayerParameters._fields:
        square = "norm" not in name and not name.endswith("bias")
        shape = shapes.get(name, (width, width) if square else (width,))
        made[name] = torch.randn(shape, generator=generator, dtype=torch.float64)
        made[name] *= shape[-1] ** -0.5 if square else 0.1
        made[name] += 1.0 if name.endswith("norm") else 0.0
    return LayerParameters(**{name: tensor.to(dtype) for name, tensor in made.items()})


def call(shape: Shape, dtype: torch.dtype = torch.float32) -> dict[str, object]:
    """Arguments; what the texts do not reach in the cache is NaN, and ancestors are any slots."""
    generator = torch.Generator().manual_seed(len(shape.lengths))
    rows, width, slots = len(shape.lengths), shape.heads * shape.dim, len(shape.lengths) + 2
    lengths = torch.tensor(shape.lengths, dtype=torch.int64)
    places = torch.arange(shape.places)
    own = torch.randperm(slots, generator=generator)[:rows]
    ancestry = torch.randint(slots, (rows, shape.places), generator=generator)
    ancestry = torch.where(places < lengths[:, None], ancestry, own[:, None])
    cache = torch.randn(2, slots, shape.places, shape.heads, shape.dim, generator=generator, dtype=torch.float64)
    reached = torch.zeros(slots, shape.places, dtype=torch.bool)
    for row, length in enumerate(shape.lengths):
        reached[ancestry[row, :length], places[:length]] = True
    cache[:, ~reached] = float("nan")
    image = torch.tensor(shape.images, dtype=torch.int64)
    images = max(shape.images, default=0) + 1
    states = torch.randn(3, images * shape.keys + rows, width, generator=generator, dtype=torch.float64)
    key, value = (states[i, rows:].view(images, shape.keys, shape.heads, shape.dim).to(dtype) for i in (0, 1))
    return {
        "hidden": states[2, :rows].to(dtype),
        "parameters": parameters_of(width, dtype),
        "cache": cache.to(dtype),
        "ancestry": ancestry,
        "slots": own,
        "lengths": lengths,
        "key": key,
        "value": value,
        "groups": group_rows(torch.arange(rows + 1), image, rows, images),
    }


def run(backend: str, arguments: dict[str, object]) -> tuple[Tensor, Tensor]:
    """Result, and the cache afterwards."""
    cache = arguments["cache"].clone()
    with blip_fast.backend(backend, op="decode_layer"):
        return decode_layer(**{**arguments, "cache": cache}), cache


@pytest.mark.parametrize("backend", BACKENDS)
@ALL_SHAPES
def test_float64(backend, shape):
    exact, kept = run("reference", call(shape, torch.float64))
    eager, _ = run("reference", call(shape))
    found, cache = run(backend, call(shape))
    assert found.shape == exact.shape
    assert not found.isnan().any()
    assert (found - exact).norm() <= 1.5 * (eager - exact).norm() + 1e-7 * exact.norm()
    torch.testing.assert_close(cache.double(), kept, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_tokens_own_places_are_written(backend):
    arguments = call(SHAPES["ragged, an image without texts"])
    _, cache = run(backend, arguments)
    own = torch.zeros(cache.shape[1:3], dtype=torch.bool)
    own[arguments["slots"], arguments["lengths"]] = True
    assert not cache[:, own].isnan().any()
    assert torch.equal(cache[:, ~own].nan_to_num(7.0), arguments["cache"][:, ~own].nan_to_num(7.0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_text_token_by_token_is_the_text_at_once(backend):
    torch.manual_seed(0)
    config = BlipConfig.tiny()
    decoder = TextDecoder(config).eval()
    layer, heads = decoder.bert.encoder.layer[0], config.text_heads
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        hidden, states = torch.randn(2, 6, config.text_width), torch.randn(2, 5, config.vit_width)
        future = torch.full((6, 6), -torch.inf).triu(1)[None, None]
        expected = layer(hidden, future, states)
        image = layer.crossattention.self
        key, value = (part(states).unflatten(-1, (heads, -1)) for part in (image.key, image.value))
        cache = torch.zeros(2, 2, 6, heads, config.text_width // heads)
        slots, groups = torch.arange(2), group_rows(torch.arange(3), torch.arange(2), 2, 2)
        with blip_fast.backend(backend, op="decode_layer"):
            steps = [
                decode_layer(
                    hidden[:, n].contiguous(),
                    LayerParameters.of(layer),
                    cache,
                    slots[:, None].repeat(1, 6),
                    slots,
                    torch.full((2,), n),
                    key,
                    value,
                    groups,
                    config.text_layer_norm_eps,
                )
                for n in range(6)
            ]
    torch.testing.assert_close(torch.stack(steps, 1), expected, rtol=1e-5, atol=1e-5)


@needs_native
def test_a_row_depends_on_its_image_alone_and_not_on_threads():
    shape = SHAPES["beams"]
    together, _ = run("cpu", call(shape))
    arguments = call(shape)
    for row_slice, image in ((slice(0, 3), 0), (slice(3, 6), 1)):
        part = {name: arguments[name][row_slice] for name in ("hidden", "ancestry", "slots", "lengths")}
        part |= {name: arguments[name][image : image + 1] for name in ("key", "value")}
        groups = group_rows(torch.arange(4), torch.zeros(3, dtype=torch.int64), 3, 1)
        alone, _ = run("cpu", {**arguments, **part, "groups": groups})
        assert torch.equal(alone, together[row_slice])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(run("cpu", arguments)[0], together)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("backend", BACKENDS)
def test_not_a_number_stays_in_its_row(backend):
    arguments = call(SHAPES["beams"])
    arguments["hidden"][1, 0] = float("nan")
    found, _ = run(backend, arguments)
    assert found[1].isnan().all()
    assert not found[[0, 2, 3, 4, 5]].isnan().any()


@needs_native
@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("lengths", 9, "lengths has 9; expected a place of the cache"),
        ("slots", -1, "slots has -1; expected a slot of the cache"),
        ("ancestry", 8, "ancestry has 8; expected slots of the cache"),
    ],
)
def test_places_outside_of_the_cache_are_refused(name, wrong, message):
    arguments = call(SHAPES["beams"])
    arguments[name] = arguments[name].clone().index_fill_(0, torch.tensor([2]), wrong)
    with pytest.raises(RuntimeError, match=message):
        run("cpu", arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(6)}, r"hidden has shape \(6,\); expected \(R, C\)"),
        ({"cache": torch.zeros(2, 8, 9, 2, 8)}, r"cache has shape .* with H \* D = 32"),
        ({"cache": torch.zeros(2, 8, 9, 32)}, r"cache has shape \(2, 8, 9, 32\); expected contiguous"),
        ({"cache": torch.zeros(3, 8, 9, 2, 16)}, r"cache has shape \(3, 8, 9, 2, 16\); expected contiguous"),
        ({"cache": torch.zeros(2, 9, 8, 2, 16).transpose(1, 2)}, "cache has shape .* expected contiguous"),
        ({"slots": torch.arange(12)[::2]}, r"slots is torch.int64 of shape \(6,\); expected contiguous"),
        ({"slots": torch.zeros(6)}, r"slots is torch.float32 .* expected contiguous int64 \(6,\)"),
        ({"ancestry": torch.zeros(6, 3, dtype=torch.int64)}, r"ancestry .* expected contiguous int64 \(6, 9\)"),
        ({"key": torch.zeros(2, 5, 2, 16, 1)}, r"key has shape .* H and D as in the cache"),
        ({"key": torch.zeros(2, 5, 1, 32)}, r"key has shape .* H and D as in the cache"),
        ({"value": torch.zeros(2, 5, 2, 16)}, r"value has shape .* H and D as in the cache"),
        ({"key": torch.zeros(2, 37, 16, 2).mT}, "key has stride 2 in its last dimension; expected 1"),
        ({"groups": group_rows(torch.arange(8), torch.zeros(7).long(), 7, 2)}, r"groups.rows .* of shape \(7,\)"),
        ({"cache": torch.zeros(2, 8, 9, 2, 16).double()}, "cache is torch.float64; expected torch.float32 as hidden"),
        ({"parameters": parameters_of(16)}, r"parameters.query has shape \(16, 16\); expected contiguous \(32, 32\)"),
        ({"parameters": parameters_of(32)._replace(key=torch.zeros(32, 32).T)}, "parameters.key has shape"),
    ],
)
def test_refused(change, message):
    with pytest.raises(ValueError, match=message):
        decode_layer(**{**call(SHAPES["beams"]), **change})


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend):
    arguments = call(SHAPES["beams"])
    arguments["cache"].nan_to_num_(0.0)
    values = [list(a) if isinstance(a, tuple) else a for a in arguments.values()]
    with blip_fast.backend(backend, op="decode_layer"):
        torch.library.opcheck(_operation.call, (*values, 1e-12))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_gradient_is_recorded(backend):
    arguments = call(SHAPES["one text"])
    arguments["hidden"] = arguments["hidden"].requires_grad_()
    with blip_fast.backend(backend, op="decode_layer"):
        assert not decode_layer(**arguments).requires_grad


def test_flops():
    arguments = call(SHAPES["one text"])
    with FlopCounterMode(display=False) as counter:
        decode_layer(**arguments)
    products = 2 * (6 * 32 * 32 + 2 * 128 * 32)
    assert counter.get_total_flops() == products + 4 * 32 * (9 + 37)


def decode(session: DecodingSession, steps: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.stack([session.step(tokens) for tokens in steps])


@needs_native
def test_a_session_is_the_same_in_parts():
    torch.manual_seed(0)
    config = BlipConfig.tiny()
    decoder, states = TextDecoder(config).eval(), torch.randn(2, 7, config.vit_width)
    for module in decoder.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 0.1  # large enough to be seen
    steps = torch.randint(config.vocab_size, (4, 6))
    whole = DecodingSession(decoder, states, 3, 8)
    with blip_fast.backend("reference", op="decode_layer"):
        parts = DecodingSession(decoder, states, 3, 8)
    assert whole.kernel is not None
    assert parts.kernel is None
    torch.testing.assert_close(decode(whole, steps), decode(parts, steps), rtol=1e-5, atol=1e-5)


@needs_native
def test_where_a_layer_is_computed_in_parts():
    config = BlipConfig.tiny()
    parameters = [parameters_of(32)]
    assert layer_kernel(parameters, torch.zeros(1)) is not None
    assert layer_kernel(parameters, torch.zeros(1, dtype=torch.bfloat16)) is None
    assert layer_kernel([parameters_of(32, torch.float64)], torch.zeros(1)) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert layer_kernel(parameters, torch.zeros(1)) is None
    for name in ("reference", "triton"):
        with blip_fast.backend(name):
            assert layer_kernel(parameters, torch.zeros(1)) is None
    decoder = to_int8(BlipCaptioner(config)).text_decoder
    assert DecodingSession(decoder, torch.zeros(1, 2, config.vit_width), 1, 8).kernel is None
