"""cross_attention: every backend against a loop over texts in float64, ragged and empty edges, dropout, and what it refuses."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import blip_fast
from blip_fast.ops import cross_attention, cross_attention_padded, group_rows
from blip_fast.reference.cross_attention import keep_mask
from tests.ops.common import NoSynchronisation, backends_of, device_of, dtypes_of, poisoned_memory

BACKENDS = pytest.mark.parametrize("backend", backends_of("cross_attention"))
FUSED = pytest.mark.parametrize("backend", backends_of("cross_attention")[1:])  # all but the reference


@dataclasses.dataclass(frozen=True)
class Shape:
    """Lengths of the texts and their images; unused rows at the end; B, L, H, D; tokens of each image."""

    texts: tuple[int, ...]
    image_of_text: tuple[int, ...]
    images: int = 3
    unused: int = 0
    keys: int = 37
    heads: int = 2
    dim: int = 16
    image_lengths: tuple[int, ...] | None = None

    def inputs(
        self, dtype: torch.dtype = torch.float64, device: str = "cpu", seed: int = 0
    ) -> dict[str, Tensor | None]:
        generator = torch.Generator().manual_seed(seed)
        cu_seqlens = torch.tensor([0, *self.texts]).cumsum(0)
        tokens = int(cu_seqlens[-1]) + self.unused
        query = torch.randn(tokens, self.heads, self.dim, generator=generator, dtype=torch.float64)
        size = (self.images, self.keys, 2, self.heads, self.dim)
        key, value = torch.randn(size, generator=generator, dtype=torch.float64).to(device, dtype).unbind(2)
        lengths = None if self.image_lengths is None else torch.tensor(self.image_lengths, device=device)
        return {
            "query": query.to(device, dtype),
            "key": key,
            "value": value,
            "cu_seqlens": cu_seqlens.to(device),
            "image_of_text": torch.tensor(self.image_of_text, dtype=torch.int64, device=device),
            "image_lengths": lengths,
        }


SHAPES = {
    "several texts per image, any order, one image without": Shape((3, 5, 1, 13), (2, 0, 2, 0)),
    "empty texts and unused rows": Shape((0, 4, 0, 2, 0), (0, 1, 1, 1, 2), unused=3),
    "one image": Shape((2, 3), (0, 0), images=1, keys=1),
    "more rows than a tile, more keys than a block": Shape((40, 70, 30), (1, 1, 0), images=2, keys=300, heads=1),
    "a vector more than a tile, more keys than a block": Shape((66, 2), (0, 1), images=2, keys=260, heads=1),
    "image lengths, one of them 0": Shape((3, 5, 2), (2, 0, 1), image_lengths=(0, 36, 20)),
    "texts without an image": Shape((3, 5, 2), (-1, 1, 7)),
    "no text": Shape((), (), unused=2),
    "no row": Shape((0, 0), (0, 1)),
    "no image": Shape((2, 3), (0, 1), images=0),
    "no key": Shape((2, 3), (0, 1), keys=0),
    "decoding": Shape((1,) * 6, (0, 0, 0, 1, 1, 1), images=2, keys=300),
    "decoding greedily": Shape((1, 1), (1, 0), images=2, keys=33),
    "head size 20": Shape((3, 4), (1, 0), dim=20),
    "head size 128": Shape((3, 17), (1, 0), dim=128),
}
ALL_SHAPES = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
SMALL = SHAPES["several texts per image, any order, one image without"]
DROPOUT = {"dropout_p": 0.3, "seed": 5, "offset": 7}


def loop_over_texts(query, key, value, cu_seqlens, image_of_text, image_lengths, dropout_p=0.0, seed=0, offset=0):
    """Attention as the formula says, a text and a head at a time."""
    out = torch.zeros_like(query)
    images, heads = key.shape[0], key.shape[2]
    for text, image in enumerate(image_of_text.tolist()):
        length = key.shape[1] if image_lengths is None else int(image_lengths[min(max(image, 0), images - 1)])
        rows = torch.arange(int(cu_seqlens[text]), int(cu_seqlens[text + 1]))
        if not 0 <= image < images or length == 0:
            continue
        for head in range(heads):
            k, v = key[image, :length, head], value[image, :length, head]
            p = torch.softmax(query[rows, head] @ k.T / key.shape[-1] ** 0.5, dim=-1)
            position = torch.arange(len(rows))
            text_head = torch.full_like(position, text * heads + head)
            keep = keep_mask(torch.tensor(seed), torch.tensor(offset), dropout_p, text_head, position, length)
            out = out.index_put((rows, torch.tensor(head)), (p * keep / (1 - dropout_p)) @ v)
    return out


def gradients(function, inputs, **options):
    """Output, and gradients of query, key and value for a fixed gradient of the output."""
    leaves = [inputs[name].detach().clone().requires_grad_() for name in ("query", "key", "value")]
    rest = {name: inputs[name] for name in ("cu_seqlens", "image_of_text", "image_lengths")}
    out = function(*leaves, **rest, **options)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    if out.requires_grad:  # not where the loop finds nothing to do
        out.backward(grad.to(out))
    return [out.detach(), *(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves)]


def errors(got, expected):
    return [float((a.detach().cpu().double() - b).norm()) for a, b in zip(got, expected, strict=True)]


@ALL_SHAPES
@pytest.mark.parametrize("options", [{}, DROPOUT], ids=["plain", "dropout"])
def test_reference_equals_the_loop_in_float64(shape, options):
    inputs = shape.inputs()
    with blip_fast.backend("reference"):
        got = gradients(cross_attention, inputs, **options)
    expected = gradients(loop_over_texts, inputs, **options)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def against_eager(backend, shape, dtype, options):
    """Error of a backend and error of the reference in the same dtype, both against float64: pairs for out and gradients."""
    rounded = shape.inputs(dtype)
    exact_inputs = {n: t.double() if t is not None and t.is_floating_point() else t for n, t in rounded.items()}
    with blip_fast.backend("reference"):
        exact = gradients(cross_attention, exact_inputs, **options)
        eager = gradients(cross_attention, rounded, **options)
    with blip_fast.backend(backend), poisoned_memory():
        got = gradients(cross_attention, shape.inputs(dtype, device_of(backend)), **options)
    assert all(a.dtype == dtype for a in got)
    return list(zip(errors(got, exact), errors(eager, exact), strict=True))


@FUSED
@ALL_SHAPES
@pytest.mark.parametrize("options", [{}, DROPOUT], ids=["plain", "dropout"])
def test_equals_float64(backend, shape, options):
    for dtype in dtypes_of(backend):
        for error, of_eager in against_eager(backend, shape, dtype, options):
            assert error <= 3 * of_eager + 1e-6


@FUSED
def test_error_is_at_most_one_and_a_half_times_the_eager_one(backend):
    shape = Shape((13, 9, 20, 13, 11, 14), (0, 1, 0, 1, 0, 1), images=2, keys=197, dim=64)
    for dtype in dtypes_of(backend):
        for error, of_eager in against_eager(backend, shape, dtype, {}):
            assert error <= 1.5 * of_eager


@BACKENDS
def test_keys_and_values_in_one_tensor_have_one_gradient(backend):
    inputs = SMALL.inputs(torch.float32, device_of(backend))
    together = torch.stack([inputs.pop("key"), inputs.pop("value")], dim=2).requires_grad_()
    key, value = (t.detach().clone().requires_grad_() for t in together.unbind(2))
    with blip_fast.backend(backend):
        one = cross_attention(key=together, value=None, **inputs)
        two = cross_attention(key=key, value=value, **inputs)
        for out in (one, two):
            out.square().sum().backward()
    assert torch.equal(one, two)
    assert torch.equal(together.grad, torch.stack([key.grad, value.grad], dim=2))


@BACKENDS
def test_strided_queries_and_groups_made_before(backend):
    inputs = SMALL.inputs(torch.float32, device_of(backend))
    wide = torch.stack([inputs["query"]] * 3, dim=1)
    groups = group_rows(
        inputs["cu_seqlens"].int(), inputs["image_of_text"].int(), inputs["query"].shape[0], SMALL.images
    )
    with blip_fast.backend(backend):
        expected = cross_attention(**inputs)
        assert torch.equal(cross_attention(**inputs | {"query": wide[:, 1]}, groups=groups), expected)


@BACKENDS
def test_masked_keys_and_values_are_not_read(backend):
    shape = SHAPES["image lengths, one of them 0"]
    clean = shape.inputs(torch.float32, device_of(backend))
    dirty = shape.inputs(torch.float32, device_of(backend))
    for image, length in enumerate(shape.image_lengths):
        for name in ("key", "value"):
            dirty[name][image, length:] = float("nan")
    with blip_fast.backend(backend):
        for a, b in zip(gradients(cross_attention, dirty), gradients(cross_attention, clean), strict=True):
            torch.testing.assert_close(a, b)


@BACKENDS
@pytest.mark.parametrize("lengths", [None, (64, 7)])
def test_a_part_of_the_keys_may_be_empty_and_scores_low(backend, lengths):
    """Where keys are split among programs: 520 keys are no whole number of parts."""
    inputs = Shape((1, 2), (0, 1), images=2, keys=520, image_lengths=lengths).inputs(torch.float32, device_of(backend))
    inputs["query"], inputs["key"] = -20 * torch.ones_like(inputs["query"]), inputs["key"].abs() + 5
    with blip_fast.backend(backend):
        got = cross_attention(**inputs)
    doubles = {n: t.double() if n in ("query", "key", "value") else t for n, t in inputs.items() if t is not None}
    with blip_fast.backend("reference"):
        torch.testing.assert_close(got, cross_attention(**doubles).float(), rtol=1e-3, atol=1e-3)


@BACKENDS
def test_strided_integers(backend):
    inputs = SHAPES["image lengths, one of them 0"].inputs(torch.float32, device_of(backend))
    integers = ("cu_seqlens", "image_of_text", "image_lengths")
    strided = {name: torch.stack([inputs[name].int()] * 2, dim=1)[:, 0] for name in integers}
    with blip_fast.backend(backend):
        assert torch.equal(cross_attention(**inputs | strided, **DROPOUT), cross_attention(**inputs, **DROPOUT))


def test_no_second_derivative():
    inputs = SMALL.inputs(torch.float32)
    query = inputs.pop("query").requires_grad_()
    with pytest.raises(RuntimeError, match="cross_attention has no second derivative"):
        torch.autograd.grad(cross_attention(query, **inputs).sum(), query, create_graph=True)


@BACKENDS
@pytest.mark.parametrize("name", ["query", "key", "value"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_spread_as_in_eager(backend, name, bad):
    inputs = SMALL.inputs(torch.float32, device_of(backend))
    inputs[name] = inputs[name].clone()
    inputs[name][-1, -1, -1] = bad
    with blip_fast.backend(backend):
        got = gradients(cross_attention, inputs)
    with blip_fast.backend("reference"):
        expected = gradients(cross_attention, inputs)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a.isnan(), b.isnan())
        assert torch.equal(a.isinf(), b.isinf())


@BACKENDS
def test_a_block_of_keys_may_score_minus_infinity(backend):
    inputs = Shape((3, 5), (1, 0), images=2, keys=300, heads=1).inputs(torch.float32, device_of(backend))
    inputs["query"], inputs["key"] = inputs["query"].abs(), inputs["key"].clone()
    inputs["key"][:, :140] = -float("inf")
    with blip_fast.backend(backend):
        got = cross_attention(**inputs)
    key, value = inputs["key"][:, 140:], inputs["value"][:, 140:]
    torch.testing.assert_close(got, cross_attention(**inputs | {"key": key, "value": value}))


@BACKENDS
def test_repeats_bit_for_bit(backend):
    shape = SHAPES["more rows than a tile, more keys than a block"]
    with blip_fast.backend(backend):
        first, second = (
            gradients(cross_attention, shape.inputs(torch.float32, device_of(backend)), **DROPOUT) for _ in "ab"
        )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@BACKENDS
def test_unused_rows_do_not_change_the_others(backend):
    inputs = SMALL.inputs(torch.float32, device_of(backend))
    longer = inputs | {"query": torch.cat([inputs["query"], torch.full_like(inputs["query"], float("nan"))])}
    with blip_fast.backend(backend):
        expected = cross_attention(**inputs, **DROPOUT)
        got = cross_attention(**longer, **DROPOUT)
    assert torch.equal(got[: len(expected)], expected)
    assert torch.equal(got[len(expected) :], torch.zeros_like(expected))


@BACKENDS
def test_padded_texts(backend):
    shape = Shape((4, 4, 4), (0, 1, 2))
    inputs = shape.inputs(torch.float32, device_of(backend))
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0]], device=device_of(backend))
    query = inputs["query"].unflatten(0, (3, 4))
    options = {"dropout_p": 0.3, "seed": 1}
    with blip_fast.backend(backend):
        got = cross_attention_padded(query, inputs["key"], inputs["value"], mask, **options)
        every = cross_attention(**inputs, **options).unflatten(0, (3, 4))
    assert torch.equal(got, every * mask[..., None, None])


def test_dropout_keeps_the_right_share_and_depends_on_every_coordinate():
    position, text_head = torch.arange(50)[:, None], torch.arange(40)

    def at(seed, offset):
        return keep_mask(torch.tensor(seed), torch.tensor(offset), 0.1, text_head, position, 197)

    keep = at(1, 2)
    assert abs(keep.float().mean().item() - 0.9) < 4 * (0.09 / keep.numel()) ** 0.5
    for dim in range(3):
        assert not torch.equal(keep, keep.roll(1, dim))
    assert not torch.equal(keep, at(3, 2))
    assert not torch.equal(keep, at(1, 3))
    assert torch.equal(keep, at(1, 2))


def test_seed_comes_from_the_generator_of_torch():
    inputs = SMALL.inputs(torch.float32)
    torch.manual_seed(0)
    first, second = (cross_attention(**inputs, dropout_p=0.5) for _ in "ab")
    torch.manual_seed(0)
    assert torch.equal(cross_attention(**inputs, dropout_p=0.5), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("options", [{}, {"dropout_p": 0.4, "seed": 3}], ids=["plain", "dropout"])
def test_gradcheck(options):
    shape = Shape((2, 3, 0, 1), (1, 0, 1, 1), images=2, keys=5, dim=3, image_lengths=(5, 3))
    inputs = shape.inputs()
    leaves = [inputs.pop(name).detach().clone().requires_grad_() for name in ("query", "key", "value")]

    def run(query, key, value):
        return cross_attention(query, key, value, **inputs, scale=0.7, **options)

    with blip_fast.backend("reference"):
        assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


@BACKENDS
def test_opcheck(backend):
    device = device_of(backend)
    inputs = SMALL.inputs(torch.float32, device)
    query, key, value = (inputs[name].detach().clone().requires_grad_() for name in ("query", "key", "value"))
    groups = list(group_rows(inputs["cu_seqlens"], inputs["image_of_text"], len(query), SMALL.images))
    rest = (
        groups,
        None,
        torch.ones(1, dtype=torch.int64, device=device),
        torch.zeros(1, dtype=torch.int64, device=device),
        0.2,
        0.25,
        16,
    )
    with blip_fast.backend(backend):
        torch.library.opcheck(torch.ops.blip_fast.cross_attention.default, (query, key, value, *rest))
        query, key, value = (t.detach() for t in (query, key, value))
        out, statistics = torch.ops.blip_fast.cross_attention(query, key, value, *rest)
        torch.library.opcheck(
            torch.ops.blip_fast.cross_attention_backward.default, (out, query, key, value, out, statistics, *rest)
        )


def test_compiles_without_a_graph_break():
    inputs = SMALL.inputs(torch.float32)
    compiled = torch.compile(cross_attention, fullgraph=True, backend="aot_eager")
    for options in ({}, {"dropout_p": 0.3, "seed": 4}):
        for a, b in zip(
            gradients(compiled, inputs, **options), gradients(cross_attention, inputs, **options), strict=True
        ):
            assert torch.equal(a, b)


def test_autocast_casts_to_its_dtype():
    inputs = SMALL.inputs(torch.float32)
    leaf = inputs["query"].requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = cross_attention(**inputs)
    out.float().sum().backward()
    low = {n: t.detach().bfloat16() if t is not None and t.is_floating_point() else t for n, t in inputs.items()}
    assert torch.equal(out, cross_attention(**low))
    assert leaf.grad.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):  # which leaves float64 alone
        assert cross_attention(**SMALL.inputs()).dtype == torch.float64


def test_nothing_waits_for_the_device():
    inputs = SHAPES["empty texts and unused rows"].inputs(torch.float32)
    with NoSynchronisation(), blip_fast.backend("cpu"):
        gradients(cross_attention, inputs, **DROPOUT)


def test_flops():
    shape = Shape((3, 4), (1, 0), images=2)
    inputs = shape.inputs(torch.float32)
    products = 2 * 7 * shape.heads * shape.dim * shape.keys
    with FlopCounterMode(display=False) as counter:
        gradients(cross_attention, inputs)
    assert counter.get_total_flops() == (2 + 5) * products


def test_meta_tensors_have_the_right_shapes():
    inputs = {n: t.to("meta") if t is not None else None for n, t in SMALL.inputs(torch.float32).items()}
    out = cross_attention(**inputs)
    assert out.shape == inputs["query"].shape


def refused(**changes):
    return SMALL.inputs(torch.float32) | changes


def groups_of(tokens, images):
    inputs = SMALL.inputs()
    return group_rows(inputs["cu_seqlens"], inputs["image_of_text"], tokens, images)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            refused(query=torch.ones(3, 32)),
            r"query is torch.float32 of shape \(3, 32\); expected floating point \(T, H, D\)",
        ),
        (refused(query=torch.ones(22, 2, 16).long()), "query is torch.int64"),
        (refused(query=torch.ones(3, 2, 160)), "D <= 128"),
        (refused(key=torch.ones(3, 37, 2, 8)), r"key has shape \(3, 37, 2, 8\); expected \(B, L, 2, 16\)"),
        (refused(key=torch.ones(3, 2, 16)), r"key has shape \(3, 2, 16\); expected \(B, L, 2, 16\)"),
        (refused(value=None), r"expected \(B, L, 2, 2, 16\)"),
        (
            refused(value=torch.ones(3, 36, 2, 16)),
            r"value has shape \(3, 36, 2, 16\); expected \(3, 37, 2, 16\) as key",
        ),
        (refused(value=torch.ones(3, 37, 2, 16).half()), "value is torch.float16; expected torch.float32 as query"),
        (refused(key=torch.ones(3, 37, 2, 16, device="meta")), "key is on meta; expected cpu as query"),
        (refused(key=torch.ones(3, 37, 16, 2).mT), "key has stride 2 in its last dimension; expected 1"),
        (
            refused(cu_seqlens=torch.zeros(4, dtype=torch.int64)),
            r"cu_seqlens .* expected int32 or int64 of shape \(5,\)",
        ),
        (refused(cu_seqlens=torch.zeros(5, dtype=torch.int64, device="meta")), "cu_seqlens is on meta; expected cpu"),
        (refused(image_of_text=torch.zeros(4)), "image_of_text is torch.float32"),
        (refused(image_of_text=torch.zeros(4, 1)), "image_of_text has shape .* expected one dimension"),
        (refused(image_lengths=torch.zeros(2, dtype=torch.int32)), r"image_lengths .* of shape \(3,\)"),
        (refused(dropout_p=1.0), r"dropout_p is 1.0; expected a number in \[0, 1\)"),
        (refused(scale=0.0), "scale is 0.0; expected a positive number"),
        (refused(dropout_p=0.1, seed=torch.tensor(1.0)), "seed is torch.float32 of 1 elements on cpu; expected an int"),
        (refused(dropout_p=0.1, seed=torch.tensor([], dtype=torch.int64)), "seed is torch.int64 of 0 elements on cpu"),
        (refused(dropout_p=0.1, offset=torch.tensor(1).int()), "offset is torch.int32 of 1 elements on cpu; expected"),
        (
            refused(groups=groups_of(21, 3)),
            r"groups.rows is torch.int32 of shape \(21,\) on cpu; expected what group_rows",
        ),
        (refused(groups=groups_of(22, 4)), r"groups.bounds is torch.int32 of shape \(6,\)"),
        (
            refused(groups=groups_of(22, 3)._replace(rows=torch.arange(22))),
            r"groups.rows is torch.int64 of shape \(22,\)",
        ),
        (
            refused(groups=groups_of(22, 3)._replace(text_of_row=torch.arange(22, device="meta").int())),
            r"groups.text_of_row is torch.int32 of shape \(22,\) on meta",
        ),
    ],
)
def test_refuses(inputs, message):
    with pytest.raises(ValueError, match=message):
        cross_attention(**inputs)


def test_padded_front_end_refuses():
    inputs = Shape((4, 4, 4), (0, 1, 2)).inputs(torch.float32)
    key, value, query = inputs["key"], inputs["value"], inputs["query"].unflatten(0, (3, 4))
    with pytest.raises(ValueError, match="query has shape"):
        cross_attention_padded(query[0], key, value)
    with pytest.raises(ValueError, match=r"mask has shape \(3, 3\); expected \(3, 4\)"):
        cross_attention_padded(query, key, value, torch.ones(3, 3))
    with pytest.raises(ValueError, match="image_of_text is None for 2 texts and 3 images"):
        cross_attention_padded(query[:2], key, value)
