"""The whole step that a CUDA graph holds, on the CPU and on `meta`; capture and replay where there is a GPU."""

from __future__ import annotations

import pytest
import torch

from blip_fast.benchmarks.models.counts import CountReads
from blip_fast.data.packing import PackedTexts, pack
from blip_fast.models import BlipPretrain
from blip_fast.optim import AdamWMomentum
from blip_fast.training.cuda_graph import GraphedStep, WholeStep, copy_into, shape_of
from blip_fast.training.devices import map_tensors
from tests.models.common import texts
from tests.models.heads import HEADS

CAPACITY, LONGEST = 32, 12
RATES = [(0.0, 1e-3), (0.2, 5e-4), (0.4, 2e-4), (0.4, 1e-4), (0.1, 1e-4)]
NEGATIVES = (torch.tensor([1, 2, 0]), torch.tensor([2, 0, 1]))


def batch(seed: int, capacity: int = CAPACITY) -> dict[str, object]:
    image = HEADS["pretrain"].inputs()[0] + seed
    packed = pack(*texts(3, 9, generator=seed)).with_capacity(capacity, LONGEST)
    return {"image": image, "texts": packed, "negatives": NEGATIVES}


def model_and_optimizer(device: str) -> tuple[BlipPretrain, AdamWMomentum]:
    model = HEADS["pretrain"].build(BlipPretrain).to(device)
    model.momentum_in_forward = False
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return model, AdamWMomentum(trained, model.momentum_pairs(), weight_decay=0.05)


def losses_of(model: BlipPretrain):
    def compute(given, alpha):
        out = model(given["image"], given["texts"], None, alpha=alpha, negatives=given["negatives"])
        return {"itc": out.loss_itc, "itm": out.loss_itm, "lm": out.loss_lm}

    return compute


def plain_training(device: str, batches) -> tuple[BlipPretrain, list[torch.Tensor]]:
    model, optimizer = model_and_optimizer(device)
    series = []
    for given, (alpha, lr) in zip(batches, RATES, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        losses = losses_of(model)(given, torch.tensor(alpha, device=device))
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        series.append(torch.stack(list(losses.values())).detach())
    return model, series


def test_the_step_trains_as_a_plain_loop_does():
    batches = [batch(seed) for seed in range(len(RATES))]
    expected, series = plain_training("cpu", batches)
    model, optimizer = model_and_optimizer("cpu")
    step, addresses = WholeStep(losses_of(model), optimizer), set()
    for given, (alpha, lr), want in zip(batches, RATES, series, strict=True):
        step.set_rates(alpha, lr)
        losses = step.run(given)
        torch.testing.assert_close(torch.stack(list(losses.values())), want, rtol=1e-6, atol=0)
        addresses.add(tuple(parameter.grad.data_ptr() for parameter in optimizer.param_groups[0]["params"]))
    assert len(addresses) == 1
    for (name, value), other in zip(model.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-7, msg=name)


def test_nothing_is_read_back():
    model, optimizer = model_and_optimizer("meta")
    given = map_tensors(lambda tensor: tensor.to("meta"), batch(0))
    step = WholeStep(losses_of(model), optimizer)
    with CountReads() as reads:
        step.set_rates(0.4, 1e-4)
        losses = step.run(given)
    assert {loss.device.type for loss in losses.values()} == {"meta"}
    assert reads.found == []


def test_a_cpu_has_no_graphs():
    model, optimizer = model_and_optimizer("cpu")
    with pytest.raises(RuntimeError, match="all parameters on one GPU, they are on cpu; use WholeStep there"):
        GraphedStep(losses_of(model), optimizer)


def test_batches_of_one_shape_share_a_graph():
    cpu = torch.device("cpu")
    first, second = batch(0), batch(1)
    assert shape_of(first, cpu) == shape_of(second, cpu)
    assert shape_of(batch(0, capacity=40), cpu) != shape_of(first, cpu)
    assert shape_of([1, (torch.ones(2),)], cpu) != shape_of([2, (torch.ones(2),)], cpu)
    static = map_tensors(torch.clone, first)
    assert isinstance(static["texts"], PackedTexts)
    copy_into(static, second)
    assert torch.equal(static["texts"].input_ids, second["texts"].input_ids)
    assert torch.equal(static["image"], second["image"])
    assert not torch.equal(first["image"], second["image"])
    with pytest.raises(ValueError, match=r"a tensor \(3, 3, 16, 16\) of the batch is on cpu; expected cuda:0"):
        shape_of(first, torch.device("cuda:0"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_replays_train_as_a_plain_loop_does():
    batches = [map_tensors(torch.Tensor.cuda, batch(seed)) for seed in range(len(RATES))]
    expected, series = plain_training("cuda", batches)
    model, optimizer = model_and_optimizer("cuda")
    step = GraphedStep(losses_of(model), optimizer, max_graphs=1)
    for given, (alpha, lr), want in zip(batches, RATES, series, strict=True):
        losses = step(given, alpha, lr)
        torch.testing.assert_close(torch.stack(list(losses.values())), want, rtol=1e-4, atol=0)
    assert len(step.captured) == 1
    for (name, value), other in zip(model.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-3, atol=1e-5, msg=name)
    other = map_tensors(torch.Tensor.cuda, batch(0, capacity=40))
    for _ in range(2):
        step(other)
    with pytest.warns(
        UserWarning, match="there are graphs of max_graphs=1 shapes; batches of other shapes run without"
    ):
        losses = step(other)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert len(step.captured) == 1
