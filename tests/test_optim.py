"""AdamWMomentum: the same training as torch.optim.AdamW with the published update of the momentum copies."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from blip_fast.optim import AdamWMomentum

MOMENTUM = 0.9
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else ["cpu"]


class Model(nn.Module):
    """A trained part with momentum copies, one without, and a frozen one with a copy."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 40), nn.GELU(), nn.Linear(40, 6))
        self.head = nn.Linear(6, 3)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.body_m = copy.deepcopy(self.body).requires_grad_(False)
        self.frozen_m = nn.Linear(2, 2).requires_grad_(False)

    def momentum_pairs(self):
        modules = (self.body_m, self.body), (self.frozen_m, self.frozen)
        return [pair for a, b in modules for pair in zip(a.parameters(), b.parameters(), strict=True)]

    def groups(self):
        decayed = [p for p in self.body.parameters() if p.dim() > 1]
        other = [p for p in self.body.parameters() if p.dim() == 1]
        return [
            {"params": decayed, "weight_decay": 0.1},
            {"params": other, "weight_decay": 0.0, "lr": 3e-3},
            {"params": self.head.parameters(), "betas": (0.8, 0.95), "eps": 1e-3},
        ]

    @torch.no_grad()
    def published_update(self):
        for follower, param in self.momentum_pairs():
            follower.data = follower.data * MOMENTUM + param.data * (1.0 - MOMENTUM)

    def loss(self, step):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(16, 6, generator=generator).to(self.head.weight.device)
        features, target = self.body(x), self.body_m(x)
        loss = (features - target).square().mean() + self.head(features).square().mean()
        return loss if step % 7 else loss - self.head.bias.sum() * 0 + features.sum() * 0.1


def torch_adamw(model, **options):
    return torch.optim.AdamW(model.groups(), lr=1e-3, **options)


def ours(model, **options):
    return AdamWMomentum(model.groups(), model.momentum_pairs(), MOMENTUM, **({"lr": 1e-3} | options))


def copies_of(model):
    return torch.cat([follower.flatten() for follower, _ in model.momentum_pairs()])


def train_as_published(model, optimizer, steps):
    """Copies move at the start of each forward pass; returns what each pass sees of them."""
    seen = []
    for step in steps:
        optimizer.zero_grad()
        model.published_update()
        seen.append(copies_of(model))
        model.loss(step).backward()
        optimizer.step()
    return seen


def train(model, optimizer, steps):
    """Copies move in the optimizer's step."""
    seen = []
    if optimizer.copies_behind:
        optimizer.update_copies()
    for step in steps:
        optimizer.zero_grad()
        seen.append(copies_of(model))
        model.loss(step).backward()
        optimizer.step()
    return seen


def assert_same(a, b, bound=2e-6):
    torch.testing.assert_close(a, b, rtol=bound, atol=bound)


def assert_same_parameters(first, second):
    for (name, a), (_, b) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        if "_m." not in name:
            assert_same(a, b)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}])
def test_100_steps_as_published(device, options):
    first, second = Model().to(device), Model().to(device)
    expected = train_as_published(first, torch_adamw(first, **options), range(100))
    got = train(second, ours(second), range(100))
    assert_same_parameters(first, second)
    for a, b in zip(expected, got, strict=True):
        assert_same(a, b)


def test_every_copy_moves_once_a_step():
    model = Model()
    optimizer = AdamWMomentum(model.groups(), {p: m for m, p in model.momentum_pairs()}, MOMENTUM)
    model.loss(1).backward()
    model.body[0].bias.grad = None  # takes no part in the step
    before = [follower.clone() for follower, _ in model.momentum_pairs()]
    optimizer.step()
    for old, (follower, param) in zip(before, model.momentum_pairs(), strict=True):
        assert_same(follower, old * MOMENTUM + param * (1 - MOMENTUM))
    assert not optimizer.copies_behind
    assert model.body[0].bias not in optimizer.state
    assert model.head.weight in optimizer.state


def test_without_copies_it_is_adamw():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.load_state_dict(first.state_dict())
    optimizers = torch.optim.AdamW(first.parameters()), AdamWMomentum(second.parameters())
    for model, optimizer in zip((first, second), optimizers, strict=True):
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(1, 4)).square().sum().backward()
            optimizer.step()
    assert_same(first.weight, second.weight)
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    assert not optimizers[1].copies_behind


def test_a_state_of_torch_loads_and_the_copies_catch_up():
    first = Model()
    published = torch_adamw(first, fused=True)
    train_as_published(first, published, range(5))
    second = copy.deepcopy(first)
    optimizer = ours(second)
    optimizer.load_state_dict(copy.deepcopy(published.state_dict()))
    assert optimizer.copies_behind
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 3e-3, 1e-3]
    expected = train_as_published(first, published, range(5, 15))
    got = train(second, optimizer, range(5, 15))
    assert_same_parameters(first, second)
    assert_same(torch.stack(expected), torch.stack(got))


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"foreach": True}])
def test_our_state_loads_into_torch_and_comes_back(options):
    first, second = Model(), Model()
    optimizer, published = ours(first), torch_adamw(second, **options)
    train(first, optimizer, range(5))
    second.load_state_dict(first.state_dict())
    published.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(first, optimizer, range(5, 10))
    # Our copies are one update ahead of what the published forward pass expects: only the parameters are compared.
    for step in range(5, 10):
        published.zero_grad()
        second.loss(step).backward()
        published.step()
        second.published_update()
    assert_same_parameters(first, second)
    optimizer.load_state_dict(copy.deepcopy(published.state_dict()))
    assert optimizer.copies_behind
    assert all(group["fused"] for group in optimizer.param_groups)  # for when torch's class loads it again
    assert_same_parameters(first, second)


def test_resumes_from_its_own_state(tmp_path):
    model = Model()
    optimizer = ours(model)
    train(model, optimizer, range(5))
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint.pth")
    saved = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    again = Model()
    again.load_state_dict(saved["model"])
    resumed = ours(again)
    assert resumed.copies_behind
    resumed.load_state_dict(saved["optimizer"])
    assert not resumed.copies_behind
    assert torch.equal(
        torch.stack(train(model, optimizer, range(5, 9))), torch.stack(train(again, resumed, range(5, 9)))
    )
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_a_state_saved_before_the_first_step_leaves_the_copies_behind():
    first, second = Model(), Model()
    optimizer = ours(second)
    optimizer.load_state_dict(ours(first).state_dict())
    assert optimizer.copies_behind


def test_old_step_counts_are_made_tensors_on_the_device():
    model = Model()
    optimizer = ours(model)
    train(model, optimizer, range(2))
    state = optimizer.state_dict()
    for i, entry in state["state"].items():
        entry["step"] = 2 if i % 2 else torch.tensor([2.0], dtype=torch.float64)
    optimizer.load_state_dict(state)
    steps = [entry["step"] for entry in optimizer.state.values()]
    assert all(step.dtype == torch.float32 and step.shape == () and step == 2 for step in steps)
    train(model, optimizer, range(2, 3))


def test_copies_and_pickles():
    model = Model()
    optimizer = ours(model)
    train(model, optimizer, range(2))
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert other.momentum == MOMENTUM
        assert not other.copies_behind
        assert len(other.copies) == len(optimizer.copies)
        assert other.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


def test_grad_scaler_unscales_and_skips():
    first, second = Model(), Model()
    optimizers = torch_adamw(first, fused=True), ours(second)
    optimizers[1].update_copies()
    scalers = [torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3) for _ in range(2)]
    for step in range(8):
        for model, optimizer, scaler in zip((first, second), optimizers, scalers, strict=True):
            optimizer.zero_grad()
            if model is first:
                model.published_update()
            scaler.scale(model.loss(step)).backward()
            if step == 4:
                model.head.weight.grad[0, 0] = float("inf")
            if step == 5:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
    first.published_update()
    assert scalers[0].get_scale() == scalers[1].get_scale() != 1024.0
    assert_same_parameters(first, second)
    assert_same(copies_of(first), copies_of(second))
    assert optimizers[1].state[second.head.weight]["step"] == 7


def test_grad_factor_clips_like_clip_grad_norm():
    first, second = Model(), Model()
    for model, optimizer in ((first, torch_adamw(first)), (second, ours(second))):
        model.loss(1).backward()
        params = [p for group in optimizer.param_groups for p in group["params"]]
        if model is first:
            nn.utils.clip_grad_norm_(params, 0.01)
            optimizer.step()
        else:
            total = nn.utils.get_total_norm([p.grad for p in params])
            optimizer.step(grad_factor=(0.01 / (total + 1e-6)).clamp(max=1))
    assert_same_parameters(first, second)


def test_grad_factor_of_scaled_gradients():
    first, second = (nn.Parameter(torch.ones(3)) for _ in "ab")
    scaled, plain = (AdamWMomentum([param], eps=1.0) for param in (first, second))
    first.grad, second.grad = torch.full((3,), 8.0), torch.full((3,), 0.25)
    scaled.grad_scale = torch.tensor(16.0)
    scaled.step(grad_factor=torch.tensor(0.5))
    plain.step()
    assert torch.equal(first, second)


def test_tensor_learning_rate_and_scheduler():
    first, second, third = Model(), Model(), Model()
    optimizers = torch_adamw(first), ours(second), ours(third, lr=torch.tensor(1e-3))
    for model, optimizer in zip((first, second, third), optimizers, strict=True):
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        for step in range(1, 5):
            optimizer.zero_grad()
            (model.head(model.body(torch.ones(2, 6))) * step).square().sum().backward()
            optimizer.step()
            schedule.step()
    assert_same_parameters(first, second)
    assert_same_parameters(first, third)


def test_closure_is_called_with_gradients_and_its_loss_returned():
    model = Model()
    optimizer = ours(model)

    def closure():
        optimizer.zero_grad()
        loss = model.loss(1)
        loss.backward()
        return loss

    expected = model.loss(1).item()
    with torch.no_grad():
        assert optimizer.step(closure).item() == expected
    assert model.loss(1).item() != expected


def test_strided_gradients():
    model, like = nn.Linear(3, 4, bias=False), nn.Linear(3, 4, bias=False)
    like.load_state_dict(model.state_dict())
    model.weight.grad, like.weight.grad = torch.randn(3, 4).T, None
    like.weight.grad = model.weight.grad.contiguous()
    for module in (model, like):
        AdamWMomentum(module.parameters()).step()
    assert torch.equal(model.weight, like.weight)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_in_a_cuda_graph():
    first, second = Model().cuda(), Model().cuda()
    plain, captured = ours(first), ours(second, lr=torch.tensor(1e-3, device="cuda"))
    gradients = [torch.randn_like(p) for p in first.body.parameters()]
    for model, optimizer in ((first, plain), (second, captured)):
        for param, gradient in zip(model.body.parameters(), gradients, strict=True):
            param.grad = gradient.clone()
        optimizer.step()  # makes the state, outside the graph
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step()
    for lr in (1e-3, 1e-3, 5e-4):
        plain.param_groups[0]["lr"] = lr
        captured.param_groups[0]["lr"].fill_(lr)
        plain.step()
        graph.replay()
    assert_same_parameters(first, second)
    assert_same(copies_of(first), copies_of(second))


WEIGHT, COPY = nn.Parameter(torch.ones(2, 3)), torch.ones(2, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"momentum": 1.5}, r"momentum is 1.5; expected a number in \[0, 1\]"),
        ({"lr": -1.0}, "lr is -1.0; expected a number >= 0"),
        ({"lr": float("nan")}, "lr is nan; expected a number >= 0"),
        ({"betas": (0.9, 1.0)}, r"betas is \(0.9, 1.0\); expected two numbers in \[0, 1\)"),
        ({"params": [{"params": [WEIGHT], "weight_decay": -0.1}]}, "weight_decay is -0.1; expected a number >= 0"),
        ({"params": [nn.Parameter(torch.ones(2).half())]}, r"params\[0\] is contiguous torch.float16; expected"),
        ({"params": [nn.Parameter(torch.ones(2, 3).T)]}, r"params\[0\] is strided torch.float32; expected contiguous"),
        ({"momentum_pairs": [(WEIGHT, COPY)]}, r"momentum_pairs\[0\] has an optimised parameter as the copy"),
        ({"momentum_pairs": {WEIGHT: COPY.T}}, r"momentum_pairs\[0\] has a copy \(3, 2\)"),
        ({"momentum_pairs": {WEIGHT: COPY.half()}}, "torch.float16 on cpu; expected"),
        ({"momentum_pairs": {WEIGHT: COPY.to("meta")}}, "torch.float32 on meta; expected"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        AdamWMomentum(**({"params": [WEIGHT]} | arguments))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda p: torch.optim.AdamW(p, amsgrad=True), "amsgrad=True"),
        (lambda p: torch.optim.AdamW(p, maximize=True), "maximize=True"),
        (lambda p: torch.optim.AdamW(p, differentiable=True), "differentiable=True"),
        (lambda p: torch.optim.Adam(p), "the state is one of Adam; expected AdamW's"),
    ],
)
def test_refuses_states_of_other_optimizers(other, message):
    optimizer = AdamWMomentum([WEIGHT], lr=0.5)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(other([WEIGHT]).state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_a_refused_group_is_not_there():
    optimizer = AdamWMomentum([WEIGHT])
    with pytest.raises(ValueError, match=r"expected contiguous torch\.float32"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2).half())]})
    assert len(optimizer.param_groups) == 1


def test_refuses_sparse_gradients():
    embedding = nn.Embedding(5, 2, sparse=True)
    optimizer = AdamWMomentum(embedding.parameters())
    embedding(torch.tensor([1, 3])).sum().backward()
    with pytest.raises(RuntimeError, match="AdamWMomentum does not take sparse gradients"):
        optimizer.step()
    assert not optimizer.state


def test_float64_is_float64():
    first, second = (nn.Parameter(torch.linspace(-1, 1, 7, dtype=torch.float64)) for _ in "ab")
    ours, plain = AdamWMomentum([first], lr=0.01), torch.optim.AdamW([second], lr=0.01)
    for step in range(10):
        for param, optimizer in ((first, ours), (second, plain)):
            param.grad = torch.sin(param.detach() * (step + 1))
            optimizer.step()
    torch.testing.assert_close(first, second, rtol=1e-14, atol=1e-14)


def test_autograd_sees_the_step():
    weight = nn.Parameter(torch.ones(2, 3))
    loss = (weight**2).sum()
    optimizer = AdamWMomentum([weight], lr=0.1)
    weight.grad = torch.ones(2, 3)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
