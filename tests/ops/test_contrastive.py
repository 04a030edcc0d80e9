"""contrastive_loss: every backend against float64, and against the published form in the same dtype."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.flop_counter import FlopCounterMode

import blip_fast
from blip_fast.ops import contrastive_loss
from blip_fast.ops.contrastive import _operation
from blip_fast.reference.contrastive import contrastive_loss as published
from tests import golden
from tests.ops.common import backends_of, device_of, dtypes_of, poisoned_memory

BACKENDS = pytest.mark.parametrize("backend", backends_of("contrastive_loss"))
EPS = torch.finfo(torch.float32).eps
NAMES = ("image_feat", "text_feat", "image_feat_m", "text_feat_m", "image_queue", "text_queue", "temp")


@dataclasses.dataclass
class Inputs:
    """Arguments by name; `with_ids`: few different ids, so that rows have several positives in batch and queue."""

    batch: int
    queued: int
    embed: int
    gathered: int = 0
    offset: int = 0
    with_ids: bool = False
    seed: int = 0
    temp: float = 0.07
    dtype: torch.dtype = torch.float32
    queue_dtype: torch.dtype | None = None
    device: str = "cpu"

    def make(self) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        gathered = self.gathered or self.batch

        def features(count: int) -> torch.Tensor:
            return F.normalize(torch.randn(count, self.embed, generator=generator), dim=1)

        def to(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
            return tensor.contiguous().to(self.device, dtype)

        rows = [to(features(n), self.dtype) for n in (self.batch, self.batch, gathered, gathered)]
        queues = [to(features(self.queued).T, self.queue_dtype or self.dtype) for _ in range(2)]
        statistics = torch.promote_types(self.dtype, torch.float32)
        made = dict(
            zip(NAMES, [*rows, *queues, torch.tensor(self.temp, dtype=statistics).to(self.device)], strict=True)
        )
        if self.with_ids:
            made["ids"] = torch.randint(2**40, 2**40 + 6, (gathered,), generator=generator).to(self.device)
            made["queue_ids"] = torch.randint(2**40, 2**40 + 60, (self.queued,), generator=generator).to(self.device)
        return made


def evaluate(function, arguments, alpha=0.4, offset=0, dtype=None):
    """Loss, similarities and gradients by name; with `dtype`, of the arguments cast to it."""
    arguments = {
        name: tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor for name, tensor in arguments.items()
    }
    leaves = {name: arguments[name].detach().clone().requires_grad_() for name in ("image_feat", "text_feat", "temp")}
    loss, sim_i2t, sim_t2i = function(**{**arguments, **leaves}, alpha=alpha, offset=offset)
    loss.backward()
    return {"loss": loss, "sim_i2t": sim_i2t, "sim_t2i": sim_t2i, **{name: leaf.grad for name, leaf in leaves.items()}}


def run(backend, arguments, **options):
    with blip_fast.backend(backend), poisoned_memory():
        return evaluate(contrastive_loss, arguments, **options)


def error(got, want):
    return ((got.double() - want).norm() / want.norm()).item()


def assert_as_exact(got, eager, want, dtype, what):
    """At most 1.5 times the published form's error, and a rounding, or two of a single number: its error can be 0 by luck."""
    rounding = 2 * torch.finfo(dtype).eps if want.numel() == 1 else EPS
    assert error(got, want) <= 1.5 * error(eager, want) + rounding, what


CASES = {
    "one pair": Inputs(1, 130, 32),
    "odd sizes": Inputs(7, 1003, 20),
    "no queue": Inputs(5, 0, 16),
    "several panels of rows": Inputs(34, 140, 16),
    "many rows": Inputs(67, 140, 40),
    "ids": Inputs(9, 301, 12, with_ids=True),
    "many rows, ids, first of two ranks": Inputs(64, 129, 20, gathered=128, with_ids=True),
    "second of three ranks": Inputs(5, 90, 32, gathered=15, offset=5),
    "last of two ranks, ids": Inputs(6, 129, 40, gathered=12, offset=6, with_ids=True),
}


@BACKENDS
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_error_is_that_of_the_published_form(backend, name, alpha):
    for dtype in set(dtypes_of(backend)) - {torch.float64}:
        case = dataclasses.replace(CASES[name], dtype=dtype, device=device_of(backend))
        seeds = range(12 if case.batch == 1 else 1)  # of few numbers one draw's error is luck
        results = [compare(backend, dataclasses.replace(case, seed=seed), alpha) for seed in seeds]
        for key in results[0][0]:
            got, eager, want = (torch.stack([result[i][key] for result in results]) for i in range(3))
            assert_as_exact(got, eager, want, dtype, f"{key}, {dtype}")


def compare(backend, case, alpha):
    """What the backend, the published form and its float64 form make of a case."""
    arguments, options = case.make(), {"alpha": alpha, "offset": case.offset}
    eager = evaluate(published, arguments, **options)
    truth = evaluate(published, arguments, dtype=torch.float64, **options)
    return run(backend, arguments, **options), eager, truth


@pytest.mark.skipif(_operation.unavailable("cpu") is not None, reason="the native library is not built")
@pytest.mark.parametrize("batch", [16, 75])
def test_published_size(batch):
    arguments = Inputs(batch, 57_600, 256, queue_dtype=torch.float32).make()
    truth = evaluate(published, arguments, dtype=torch.float64)
    eager, got = evaluate(published, arguments), evaluate(contrastive_loss, arguments)
    for key, want in truth.items():
        assert_as_exact(got[key], eager[key], want, torch.float32, key)


@BACKENDS
@pytest.mark.parametrize("case", ["pretrain", "retrieval"])
def test_original_implementation(backend, case):
    tensors, _ = golden.load(case)
    stored = [f"mid.{name}" for name in NAMES[:4]] + ["init.image_queue", "init.text_queue", "init.temp"]
    arguments = {name: tensors[key].to(device_of(backend)) for name, key in zip(NAMES, stored, strict=True)}
    if case == "retrieval":
        arguments["ids"], arguments["queue_ids"] = (
            tensors[k].to(device_of(backend)) for k in ("idx", "init.idx_queue")
        )
    for run_name, alpha in (("a0", 0.0), ("a4", 0.4)):
        got = run(backend, arguments, alpha=alpha)
        torch.testing.assert_close(got["loss"].cpu(), tensors[f"{run_name}.loss_ita"], rtol=1e-5, atol=0)
        torch.testing.assert_close(got["sim_i2t"].cpu(), tensors["mid.sim_i2t"][:, :4], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got["sim_t2i"].cpu(), tensors["mid.sim_t2i"][:, :4], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got["temp"].cpu(), tensors["a4.grad.temp"], rtol=1e-4, atol=0)


def test_reference_in_float64():
    for case in CASES.values():
        case = dataclasses.replace(case, dtype=torch.float64)
        arguments = case.make()
        want, got = evaluate(published, arguments, offset=case.offset), run("reference", arguments, offset=case.offset)
        for key, tensor in want.items():
            torch.testing.assert_close(got[key], tensor, rtol=1e-11, atol=1e-13, msg=key)


@BACKENDS
def test_queue_of_another_dtype(backend):
    for queue_dtype in set(dtypes_of(backend)) - {torch.float32}:
        case = Inputs(6, 150, 32, queue_dtype=queue_dtype, device=device_of(backend))
        arguments = case.make()
        truth, got = evaluate(published, arguments, dtype=torch.float64), run(backend, arguments)
        for key, want in truth.items():
            assert error(got[key], want) < 1e-6, key


@BACKENDS
def test_extreme_logits(backend):
    """Logits of +-1000 at the lowest temperature, with keys in ascending order so that the maximum moves in every tile."""
    arguments = Inputs(4, 400, 16, temp=0.001, device=device_of(backend)).make()
    order = (arguments["text_feat"][0].cpu() @ arguments["text_queue"].cpu()).argsort()
    arguments["text_queue"] = arguments["text_queue"][:, order].contiguous()
    truth, got = evaluate(published, arguments, dtype=torch.float64), run(backend, arguments)
    eager = evaluate(published, arguments)
    for key, want in truth.items():
        assert_as_exact(got[key], eager[key], want, torch.float32, key)


@BACKENDS
def test_all_keys_are_positives(backend):
    arguments = Inputs(4, 150, 16, device=device_of(backend)).make()
    ids = {name: torch.full((n,), -5, device=device_of(backend)) for name, n in (("ids", 4), ("queue_ids", 150))}
    truth = evaluate(published, arguments | ids, dtype=torch.float64)
    for key, got in run(backend, arguments | ids).items():
        assert error(got, truth[key]) < 1e-6, key


@BACKENDS
def test_ranks_average_to_the_whole_batch(backend):
    whole = Inputs(6, 70, 16, device=device_of(backend)).make()
    expected = run(backend, whole)
    parts = []
    for offset in (0, 3):
        local = {name: whole[name][offset : offset + 3] for name in ("image_feat", "text_feat")}
        parts.append(run(backend, whole | local, offset=offset))
    torch.testing.assert_close((parts[0]["loss"] + parts[1]["loss"]) / 2, expected["loss"])
    torch.testing.assert_close(torch.cat([part["sim_i2t"] for part in parts]), expected["sim_i2t"])
    torch.testing.assert_close(torch.cat([part["text_feat"] for part in parts]) / 2, expected["text_feat"])
    torch.testing.assert_close((parts[0]["temp"] + parts[1]["temp"]) / 2, expected["temp"])


@BACKENDS
@pytest.mark.parametrize("batch", [4, 64])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["image_feat", "text_feat_m", "text_queue", "temp"])
def test_nan_and_inf_propagate(backend, name, value, batch):
    arguments = Inputs(batch, 140, 16, device=device_of(backend)).make()
    arguments[name].view(-1)[17 % arguments[name].numel()] = value
    want, got = evaluate(published, arguments), run(backend, arguments)
    for key, tensor in want.items():
        assert torch.equal(got[key].isfinite(), tensor.isfinite()), key


@BACKENDS
def test_strided_features_and_ids(backend):
    arguments = Inputs(9, 40, 16, with_ids=True, device=device_of(backend)).make()
    want = run(backend, arguments)
    strided = {name: arguments[name].T.contiguous().T for name in NAMES[:4]}
    strided |= {name: arguments[name].repeat_interleave(2)[::2] for name in ("ids", "queue_ids")}
    with blip_fast.backend(backend):
        got = contrastive_loss(**arguments | strided, alpha=0.4)
    for key, tensor in zip(("loss", "sim_i2t", "sim_t2i"), got, strict=True):
        assert torch.equal(tensor, want[key]), key


@BACKENDS
def test_repeats_bit_for_bit(backend):
    arguments = Inputs(9, 300, 16, with_ids=True, device=device_of(backend)).make()
    first, second = run(backend, arguments), run(backend, arguments)
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key]), key


@BACKENDS
@pytest.mark.parametrize("alpha", [0.0, 0.25])
def test_alpha_as_a_tensor(backend, alpha):
    arguments = Inputs(3, 80, 16, device=device_of(backend)).make()
    as_tensor = run(backend, arguments, alpha=torch.tensor([alpha], device=device_of(backend), requires_grad=True))
    for key, tensor in run(backend, arguments, alpha=alpha).items():
        assert torch.equal(tensor, as_tensor[key]), key


def test_gradcheck():
    case = Inputs(3, 9, 5, dtype=torch.float64, with_ids=True)
    arguments = case.make()
    image_feat, text_feat, temp = (arguments.pop(name).requires_grad_() for name in ("image_feat", "text_feat", "temp"))

    def of_features(image_feat, text_feat):
        return contrastive_loss(image_feat, text_feat, **arguments, temp=temp.detach(), alpha=0.4)[0]

    def of_temp(temp):  # the targets hold temp fixed, as published, so that only with alpha = 0 it is all that varies
        return contrastive_loss(image_feat, text_feat, **arguments, temp=temp, alpha=0.0)[0]

    assert torch.autograd.gradcheck(of_features, (image_feat, text_feat))
    assert torch.autograd.gradcheck(of_temp, (temp,))


def test_only_what_requires_grad_gets_one():
    arguments = Inputs(3, 9, 8).make()
    arguments["text_feat"].requires_grad_()
    loss, sim_i2t, sim_t2i = contrastive_loss(**arguments, alpha=0.4)
    (loss * 3).backward()
    assert not sim_i2t.requires_grad
    assert not sim_t2i.requires_grad
    assert torch.equal(arguments["text_feat"].grad, evaluate(contrastive_loss, arguments)["text_feat"] * 3)
    assert not contrastive_loss(**Inputs(3, 9, 8).make(), alpha=0.4)[0].requires_grad


@BACKENDS
@pytest.mark.parametrize("with_ids", [False, True])
def test_opcheck(backend, with_ids):
    made = Inputs(3, 20, 8, with_ids=with_ids, device=device_of(backend)).make()
    for name in ("image_feat", "text_feat", "temp"):
        made[name].requires_grad_()
    tensors = [made[name] for name in NAMES]
    args = (*tensors, torch.tensor(0.4, device=device_of(backend)), made.get("ids"), made.get("queue_ids"), 0)
    with blip_fast.backend(backend):
        torch.library.opcheck(torch.ops.blip_fast.contrastive_loss.default, args)


def test_compiles_without_a_graph_break_or_recompilation():
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(contrastive_loss, fullgraph=True, backend=counter)
    arguments = Inputs(4, 50, 16, with_ids=True).make()
    for alpha in (0.0, 0.1, 0.2, 0.3, 0.4):
        got, want = evaluate(compiled, arguments, alpha=alpha), evaluate(contrastive_loss, arguments, alpha=alpha)
        for key, tensor in want.items():
            assert torch.equal(got[key], tensor), key
    assert counter.frame_count <= 2  # the first value, and then any


@BACKENDS
def test_autocast_keeps_dtypes(backend):
    device = device_of(backend)
    arguments = Inputs(4, 50, 16, device=device).make()
    want = run(backend, arguments)
    with torch.autocast(device, torch.bfloat16):
        got = run(backend, arguments)
    for key, tensor in want.items():
        assert torch.equal(got[key], tensor), key


def test_flops():
    arguments = Inputs(7, 100, 16).make()
    for name in ("image_feat", "text_feat"):
        arguments[name].requires_grad_()
    with FlopCounterMode(display=False) as counter:
        contrastive_loss(**arguments, alpha=0.4)[0].backward()
    # two directions, two products, 14 rows against 107 keys of 16 channels, and nothing in backward
    assert counter.get_total_flops() == 2 * 2 * 2 * 14 * 107 * 16


def test_shapes_on_meta():
    arguments = {name: tensor.to("meta") for name, tensor in Inputs(3, 20, 8, gathered=6).make().items()}
    outputs = contrastive_loss(**arguments, alpha=torch.tensor(0.4, device="meta"), offset=3)
    assert [tuple(output.shape) for output in outputs] == [(), (3, 6), (3, 6)]
    assert {output.dtype for output in outputs} == {torch.float32}


def change(**changes):
    def apply(arguments):
        return arguments | {name: function(arguments.get(name)) for name, function in changes.items()}

    return apply


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (change(image_feat=lambda t: t[:0]), r"image_feat has shape \(0, 8\); expected \(B, E\)"),
        (change(image_feat=lambda t: t[0]), r"image_feat has shape \(8,\); expected \(B, E\)"),
        (change(image_feat=lambda t: t[:, :0]), r"image_feat has shape \(3, 0\); expected \(B, E\)"),
        (change(text_feat=lambda t: t[:2]), r"text_feat has shape \(2, 8\); expected \(3, 8\)"),
        (change(image_feat_m=lambda t: t[:, :4]), r"image_feat_m has shape \(3, 4\); expected \(N, 8\)"),
        (change(text_feat_m=lambda t: t[:2]), r"text_feat_m has shape \(2, 8\)"),
        (change(text_queue=lambda t: t[:, :5]), r"expected \(8, Q\) both"),
        (change(image_queue=lambda t: t[:, 0], text_queue=lambda t: t[:, 0]), r"have shapes \(8,\) and \(8,\)"),
        (change(image_queue=lambda t: t[:5], text_queue=lambda t: t[:5]), r"have shapes \(5, 9\) and \(5, 9\)"),
        (change(image_queue=lambda t: t.T.contiguous().T), "image_queue or text_queue is not contiguous"),
        (change(text_queue=lambda t: t.T.contiguous().T), "image_queue or text_queue is not contiguous"),
        (change(**dict.fromkeys(NAMES[:4], torch.Tensor.long)), "image_feat is torch.int64; expected floating point"),
        (
            change(text_feat=lambda t: t.bfloat16()),
            r"text_feat is torch.bfloat16; expected torch.float32 as image_feat",
        ),
        (change(text_queue=lambda t: t.to("meta")), "text_queue is on meta; expected cpu"),
        (change(image_queue=lambda t: t.long(), text_queue=lambda t: t.long()), "image_queue is torch.int64"),
        (change(text_queue=lambda t: t.half()), "text_queue is torch.float16; expected torch.float32 as image_queue"),
        (change(temp=lambda t: t.repeat(2)), "temp has 2 elements"),
        (change(temp=lambda t: t.to("meta")), "temp has 1 elements on meta; expected one on cpu"),
        (change(alpha=lambda a: 1.5), r"alpha is 1.5; expected a number in \[0, 1\]"),
        (change(offset=lambda o: 1), "offset is 1; expected 0 to 0"),
        (change(offset=lambda o: -1), "offset is -1; expected 0 to 0"),
        (change(ids=lambda i: torch.arange(3)), "one of ids and queue_ids is given without the other"),
        (
            change(ids=lambda i: torch.arange(2), queue_ids=lambda i: torch.arange(9)),
            "ids is torch.int64 of 2 elements",
        ),
        (
            change(ids=lambda i: torch.arange(3), queue_ids=lambda i: torch.arange(9).int()),
            "queue_ids is torch.int32 of 9 elements on cpu; expected int64",
        ),
        (
            change(ids=lambda i: torch.arange(3), queue_ids=lambda i: torch.arange(9, device="meta")),
            "queue_ids is torch.int64 of 9 elements on meta; expected .* on cpu",
        ),
    ],
)
def test_refuses(broken, message):
    arguments = Inputs(3, 9, 8).make() | {"alpha": 0.4}
    contrastive_loss(**arguments)
    with pytest.raises(ValueError, match=message):
        contrastive_loss(**broken(arguments))


def test_no_second_derivative():
    arguments = Inputs(2, 5, 8).make()
    feature = arguments["image_feat"].requires_grad_()
    with pytest.raises(RuntimeError, match="contrastive_loss has no second derivative"):
        torch.autograd.grad(contrastive_loss(**arguments, alpha=0.4)[0], feature, create_graph=True)


@pytest.mark.triton
@pytest.mark.skipif(_operation.unavailable("triton") is not None, reason="Triton cannot run here")
def test_features_too_wide_for_triton_go_elsewhere():
    tensors = [tensor.to(device_of("triton")) for tensor in Inputs(2, 5, 1025).make().values()]
    with blip_fast.backend("triton"), pytest.raises(RuntimeError, match="it takes E <= 1024, got 1025"):
        _operation.select(tensors)
    assert _operation.select(tensors) != "triton"
