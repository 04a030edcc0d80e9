"""packed_self_attention: every backend against a loop over texts in float64, edges, dropout, and what it refuses."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.flop_counter import FlopCounterMode

import blip_fast
from blip_fast.ops import packed_self_attention
from blip_fast.reference.cross_attention import keep_mask
from tests.ops.common import NoSynchronisation, backends_of, device_of, dtypes_of, poisoned_memory

BACKENDS = pytest.mark.parametrize("backend", backends_of("packed_self_attention"))
FUSED = pytest.mark.parametrize("backend", backends_of("packed_self_attention")[1:])  # all but the reference


@dataclasses.dataclass(frozen=True)
class Shape:
    """Lengths of the texts; unused rows at the end; H, D."""

    texts: tuple[int, ...]
    unused: int = 0
    heads: int = 2
    dim: int = 16

    def inputs(
        self, dtype: torch.dtype = torch.float64, device: str = "cpu", room: int = 0
    ) -> tuple[Tensor, Tensor, int]:
        """Query, key and value together (T, 3, H, D), cu_seqlens and max_length, which is ``room`` more than needed."""
        cu_seqlens = torch.tensor([0, *self.texts]).cumsum(0)
        size = (int(cu_seqlens[-1]) + self.unused, 3, self.heads, self.dim)
        together = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return together.to(device, dtype), cu_seqlens.to(device), max((0, *self.texts)) + room


SHAPES = {
    "captions": Shape((3, 13, 1, 9)),
    "empty texts and unused rows": Shape((0, 4, 0, 2, 0), unused=3),
    "longer than a block": Shape((40, 130, 65), heads=1),
    "longer than a block of keys on a CPU": Shape((300,), heads=1),
    "no text": Shape((), unused=2),
    "no row": Shape((0, 0)),
    "head size 20": Shape((3, 4), dim=20),
    "head size 128": Shape((3, 17), dim=128),
}
ALL_SHAPES = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
SMALL = SHAPES["captions"]
DROPOUT = {"dropout_p": 0.3, "seed": 5, "offset": 7}
OPTIONS = {"plain": {}, "causal": {"causal": True}, "dropout": DROPOUT, "causal dropout": DROPOUT | {"causal": True}}
ALL_OPTIONS = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


def loop_over_texts(together, cu_seqlens, max_length, causal=False, dropout_p=0.0, seed=0, offset=0):
    """Attention as the formula says, a text and a head at a time."""
    tokens, _, heads, dim = together.shape
    out = together.new_zeros(tokens, heads, dim)
    for text, (first, end) in enumerate(zip(cu_seqlens.tolist(), cu_seqlens.tolist()[1:], strict=False)):
        rows, position = torch.arange(first, end), torch.arange(end - first)
        for head in range(heads):
            q, k, v = together[rows, :, head].unbind(1)
            scores = q @ k.T / dim**0.5
            if causal:
                scores = scores.masked_fill(position > position[:, None], -torch.inf)
            text_head = torch.full_like(position, text * heads + head)
            keep = keep_mask(torch.tensor(seed), torch.tensor(offset), dropout_p, text_head, position, end - first)
            p = torch.softmax(scores, -1) * keep / (1 - dropout_p)
            out = out.index_put((rows, torch.tensor(head)), p @ v)
    return out


def fused(together, cu_seqlens, max_length, **options):
    return packed_self_attention(together, None, None, cu_seqlens, max_length, **options)


def results(function, inputs, **options):
    """Output, and the gradient of the inputs for a fixed gradient of the output."""
    leaf = inputs[0].detach().clone().requires_grad_()
    out = function(leaf, *inputs[1:], **options)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    if out.requires_grad:  # not where the loop finds nothing to do
        out.backward(grad.to(out))
    return [out.detach(), torch.zeros_like(leaf) if leaf.grad is None else leaf.grad]


@ALL_SHAPES
@ALL_OPTIONS
def test_reference_equals_the_loop_in_float64(shape, options):
    with blip_fast.backend("reference"):
        got = results(fused, shape.inputs(), **options)
    for a, b in zip(got, results(loop_over_texts, shape.inputs(), **options), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def errors_of(backend, shape, dtype, options):
    """Error of a backend and of the reference in the same dtype, both against float64: pairs for output and gradient."""
    together, *rest = shape.inputs(dtype)
    with blip_fast.backend("reference"):
        exact = results(fused, (together.double(), *rest), **options)
        eager = results(fused, (together, *rest), **options)
    with blip_fast.backend(backend), poisoned_memory():
        got = results(fused, shape.inputs(dtype, device_of(backend), room=5), **options)
    assert all(a.dtype == dtype for a in got)
    return [
        [float((a.cpu().double() - truth).norm()) for a in (ours, of_eager)]
        for ours, of_eager, truth in zip(got, eager, exact, strict=True)
    ]


@FUSED
@ALL_SHAPES
@ALL_OPTIONS
def test_equals_float64(backend, shape, options):
    for dtype in dtypes_of(backend):
        for error, of_eager in errors_of(backend, shape, dtype, options):
            assert error <= 3 * of_eager + 1e-6


@FUSED
def test_error_is_at_most_one_and_a_half_times_the_eager_one(backend):
    shape = Shape((13, 9, 20, 13, 11, 14), heads=4, dim=64)
    for dtype in dtypes_of(backend):
        for error, of_eager in errors_of(backend, shape, dtype, {}):
            assert error <= 1.5 * of_eager


@BACKENDS
def test_one_tensor_and_three_are_alike(backend):
    together, *rest = SMALL.inputs(torch.float32, device_of(backend))
    parts = [part.contiguous().requires_grad_() for part in together.unbind(1)]
    together.requires_grad_()
    with blip_fast.backend(backend):
        one, three = fused(together, *rest, **DROPOUT), packed_self_attention(*parts, *rest, **DROPOUT)
        for out in (one, three):
            out.square().sum().backward()
    assert torch.equal(one, three)
    assert torch.equal(together.grad, torch.stack([part.grad for part in parts], dim=1))


@BACKENDS
@pytest.mark.parametrize("part", range(3), ids=["query", "key", "value"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_spread_as_in_eager(backend, part, bad):
    together, *rest = SMALL.inputs(torch.float32, device_of(backend))
    together[4, part, -1, -1] = bad
    with blip_fast.backend(backend):
        got = results(fused, (together, *rest))
    with blip_fast.backend("reference"):
        expected = results(fused, (together, *rest))
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a.isnan(), b.isnan())
        assert torch.equal(a.isinf(), b.isinf())


@BACKENDS
def test_a_block_of_keys_may_score_minus_infinity(backend):
    together, cu_seqlens, longest = Shape((150,)).inputs(torch.float32, device_of(backend))
    together[:, 0].abs_()
    together[:70, 1] = -float("inf")
    with blip_fast.backend(backend):
        got = fused(together, cu_seqlens, longest)[70:]
    expected = fused(together[70:], cu_seqlens.clamp(max=80), 80)
    torch.testing.assert_close(got, expected)


@BACKENDS
def test_repeats_bit_for_bit(backend):
    inputs = SHAPES["longer than a block"].inputs(torch.float32, device_of(backend))
    with blip_fast.backend(backend):
        first, second = (results(fused, inputs, **DROPOUT) for _ in "ab")
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@BACKENDS
def test_strided_lengths(backend):
    together, cu_seqlens, *rest = SMALL.inputs(torch.float32, device_of(backend))
    strided = torch.stack([cu_seqlens.int()] * 2, dim=1)[:, 0]
    with blip_fast.backend(backend):
        assert torch.equal(fused(together, strided, *rest), fused(together, cu_seqlens, *rest))


def test_no_second_derivative():
    together, *rest = SMALL.inputs(torch.float32)
    with pytest.raises(RuntimeError, match="packed_self_attention has no second derivative"):
        torch.autograd.grad(fused(together.requires_grad_(), *rest).sum(), together, create_graph=True)


@BACKENDS
def test_unused_rows_are_neither_read_nor_left_unwritten(backend):
    together, *rest = SMALL.inputs(torch.float32, device_of(backend))
    longer = torch.cat([together, torch.full_like(together, float("nan"))])
    with blip_fast.backend(backend), poisoned_memory():
        expected = results(fused, (together, *rest), **DROPOUT)
        got = results(fused, (longer, *rest), **DROPOUT)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a[: len(b)], b)
        assert torch.equal(a[len(b) :], torch.zeros_like(b))


@BACKENDS
def test_tokens_see_no_later_ones_when_causal(backend):
    together, *rest = SMALL.inputs(torch.float32, device_of(backend))
    changed = together.clone()
    changed[10:16] += 1.0  # the second half of the second text
    with blip_fast.backend(backend):
        before, after = (fused(t, *rest, causal=True) for t in (together, changed))
    assert torch.equal(before[:10], after[:10])
    assert not torch.equal(before[10], after[10])


@pytest.mark.parametrize("options", [{"causal": True}, {"dropout_p": 0.4, "seed": 3}], ids=["causal", "dropout"])
def test_gradcheck(options):
    together, *rest = Shape((2, 3, 0, 1), dim=3).inputs()
    with blip_fast.backend("reference"):
        assert torch.autograd.gradcheck(
            lambda leaf: fused(leaf, *rest, scale=0.7, **options), together.requires_grad_(), fast_mode=True
        )


@BACKENDS
@pytest.mark.parametrize("together", [True, False])
def test_opcheck(backend, together):
    device = device_of(backend)
    tensor, cu_seqlens, max_length = SMALL.inputs(torch.float32, device)
    parts = [tensor, None, None] if together else [part.contiguous() for part in tensor.unbind(1)]
    number = torch.ones(1, dtype=torch.int64, device=device)
    rest = (cu_seqlens.int(), number, number, max_length, True, 0.2, 0.25)
    leaves = [None if part is None else part.detach().clone().requires_grad_() for part in parts]
    with blip_fast.backend(backend):
        torch.library.opcheck(torch.ops.blip_fast.packed_self_attention.default, (*leaves, *rest))
        out, statistics = torch.ops.blip_fast.packed_self_attention(*parts, *rest)
        torch.library.opcheck(
            torch.ops.blip_fast.packed_self_attention_backward.default, (out, *parts, out, statistics, *rest)
        )


def test_compiles_without_a_graph_break():
    inputs = SMALL.inputs(torch.float32)
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    for options in OPTIONS.values():
        for a, b in zip(results(compiled, inputs, **options), results(fused, inputs, **options), strict=True):
            assert torch.equal(a, b)


def test_autocast_casts_to_its_dtype():
    together, *rest = SMALL.inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = fused(together.requires_grad_(), *rest)
    out.float().sum().backward()
    assert torch.equal(out, fused(together.detach().bfloat16(), *rest))
    assert together.grad.dtype == torch.float32


def test_nothing_waits_for_the_device():
    inputs = SHAPES["empty texts and unused rows"].inputs(torch.float32)
    with NoSynchronisation(), blip_fast.backend("cpu"):
        results(fused, inputs, **DROPOUT)


def test_flops():
    inputs = SMALL.inputs(torch.float32)
    products = 2 * 26 * SMALL.heads * SMALL.dim * 13
    with FlopCounterMode(display=False) as counter:
        results(fused, inputs)
    assert counter.get_total_flops() == (2 + 5) * products
    with FlopCounterMode(display=False) as counter:  # texts are never longer than all rows
        results(fused, (*inputs[:2], 1000))
    assert counter.get_total_flops() == (2 + 5) * products // 13 * 26


@BACKENDS
def test_heads_of_size_one_have_any_stride(backend):
    wide = torch.randn(6, 2, 2, device=device_of(backend))
    bounds = torch.tensor([0, 6], device=wide.device)
    with blip_fast.backend(backend):
        got = packed_self_attention(*(wide[..., ::2],) * 3, bounds, 6)
        assert torch.equal(got, packed_self_attention(*(wide[..., ::2].contiguous(),) * 3, bounds, 6))


def test_equals_torch_on_one_text():
    together, *rest = Shape((50,), dim=64).inputs(torch.float32)
    query, key, value = together.permute(1, 2, 0, 3)
    for causal in (False, True):
        expected = F.scaled_dot_product_attention(query, key, value, is_causal=causal).transpose(0, 1)
        torch.testing.assert_close(fused(together, *rest, causal=causal), expected, rtol=1e-5, atol=1e-6)


ROWS = torch.ones(4, 2, 16)
BOUNDS = torch.tensor([0, 4])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((ROWS, None, None, BOUNDS, 4), r"query is torch.float32 of shape \(4, 2, 16\); expected .* \(T, 3, H, D\)"),
        ((ROWS, ROWS, None, BOUNDS, 4), "one of key and value is None; expected both"),
        ((ROWS[0], ROWS[0], ROWS[0], BOUNDS, 4), r"expected floating point \(T, H, D\), D <= 128"),
        ((ROWS.long(), ROWS.long(), ROWS.long(), BOUNDS, 4), "query is torch.int64"),
        ((torch.ones(4, 2, 160),) * 3 + (BOUNDS, 4), "D <= 128"),
        ((ROWS, ROWS[:3], ROWS, BOUNDS, 4), r"key is .* \(3, 2, 16\) on cpu; expected .* \(4, 2, 16\) on cpu as query"),
        ((ROWS, ROWS, ROWS.half(), BOUNDS, 4), "value is torch.float16 .* expected torch.float32"),
        ((ROWS, ROWS, ROWS.to("meta"), BOUNDS, 4), "value is .* on meta; expected .* on cpu as query"),
        ((ROWS, ROWS, torch.ones(4, 16, 2).mT, BOUNDS, 4), "value has stride 2 in its last dimension; expected 1"),
        ((ROWS, ROWS, ROWS, BOUNDS.float(), 4), r"cu_seqlens is torch.float32 .* of shape \(S \+ 1,\)"),
        ((ROWS, ROWS, ROWS, BOUNDS[None], 4), r"cu_seqlens is torch.int64 of shape \(1, 2\)"),
        ((ROWS, ROWS, ROWS, BOUNDS[:0], 4), r"cu_seqlens is torch.int64 of shape \(0,\)"),
        ((ROWS, ROWS, ROWS, BOUNDS.to("meta"), 4), "cu_seqlens is on meta; expected cpu as query"),
        ((ROWS, ROWS, ROWS, BOUNDS, -1), "max_length is -1; expected the greatest length of a text"),
        ((ROWS, ROWS, ROWS, BOUNDS, 4, False, 1.0), r"dropout_p is 1.0; expected a number in \[0, 1\)"),
        ((ROWS, ROWS, ROWS, BOUNDS, 4, False, 0.0, 0.0), "scale is 0.0; expected a positive number"),
    ],
)
def test_refuses(args, message):
    with pytest.raises(ValueError, match=message):
        packed_self_attention(*args)


def test_lengths_share_a_graph():
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(backend=counter, fullgraph=True)
    def attend(together, cu_seqlens, max_length):
        return packed_self_attention(together, None, None, cu_seqlens, max_length)

    torch.compiler.reset()
    for longest in range(3, 15):
        attend(torch.randn(2 * longest, 3, 2, 16), torch.tensor([0, longest, 2 * longest]), longest)
    assert counter.frame_count <= 3
