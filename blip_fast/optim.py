"""AdamW that moves the momentum copies of a model in the same pass over memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from blip_fast.ops import adamw_momentum_step_, momentum_update_
from blip_fast.ops.adamw_momentum import check_numbers

Pairs = Mapping[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]]


class AdamWMomentum(torch.optim.Optimizer):
    """`torch.optim.AdamW`, and after each step ``copy = momentum * copy + (1 - momentum) * param``.

    **When the copies move.** The published code moves them at the start of a forward pass, this class at the end of a
    step, with the same parameters: momentum encoders see the same values from the second forward pass on. Two things
    follow. A model trained with this class must not move its copies in the forward pass. And where the copies have not
    seen the present parameters - before the first forward pass of a run, unless it goes on from a state of this class -
    one update is due: the attribute `copies_behind` is then True and `update_copies` makes it. For training as
    published, call it before the first forward pass; a fresh model starts the same without it, since its copies equal
    its parameters.

    **States** are those of `torch.optim.AdamW` and load either way. One that torch's class saved last sets
    `copies_behind`, since in published checkpoints the copies miss the last step; one of this class restores it.

    **On the device.** Step counts are there, gradients are read only, nothing is read back. In a CUDA graph, give the
    learning rate as a tensor on the device and write into it. `torch.amp.GradScaler` passes its scale and its flag
    through: gradients are unscaled on the fly, and a step with Inf is skipped - but not by the copies, which as
    published follow in every iteration.

    **Sharded** parameters (DTensors, as FSDP2 makes them) are updated in place, each rank its own rows, without
    communication: copies must be sharded like their parameters, as they are where one `fully_shard` holds both.

    Args:
        params: float32 parameters (masters), or groups of them with their own options.
        momentum_pairs: ``{param: copy}``, or pairs ``(copy, param)`` as ``model.momentum_pairs()`` gives them. Copies
            have the shape, dtype and device of their parameter. Pairs of parameters that take no part in a step (no
            gradient, or not optimised) are moved by `momentum_update_`.
        momentum: weight of a copy's old value, in [0, 1].
        lr, betas, eps, weight_decay: as `torch.optim.AdamW`; lr may be a tensor of one element.

    Raises:
        ValueError: a number is out of range, a parameter is not contiguous float32 (or float64), a copy does not fit
            its parameter or is optimised itself, or a loaded state needs amsgrad, maximize or coupled weight decay.
    """

    _step_supports_amp_scaling = True  # torch.amp.GradScaler then sets grad_scale and found_inf around step()

    def __init__(
        self,
        params: ParamsT,
        momentum_pairs: Pairs = (),
        momentum: float = 0.995,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        self.momentum = momentum  # before the groups, whose numbers are checked with it
        # `fused` makes torch.optim.AdamW load a state of this class onto the device.
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "fused": True}
        super().__init__(params, options)
        if not isinstance(momentum_pairs, Mapping):
            momentum_pairs = {param: copy for copy, param in momentum_pairs}
        self.copies = dict(momentum_pairs)
        self.copies_behind = bool(self.copies)
        self._check_copies()

    @torch.no_grad()
    def update_copies(self) -> None:
        """Move all copies once, outside a step: what the published code does in its next forward pass."""
        self._follow(self.copies)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, grad_factor: Tensor | None = None) -> Any:
        """Update parameters and copies.

        Args:
            closure: evaluates the model again and returns the loss.
            grad_factor: tensor of one element by which gradients are multiplied, e.g. for clipping
                ``(max_norm / total_norm).clamp(max=1)``; it stays on the device.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scale = getattr(self, "grad_scale", None)
        if scale is not None:
            grad_factor = scale.reciprocal() if grad_factor is None else grad_factor / scale
        left = dict(self.copies)
        for group in self.param_groups:
            self._step_group(group, grad_factor, left)
        self._follow(left)
        return loss

    def _step_group(self, group: dict[str, Any], grad_factor: Tensor | None, left: dict[Tensor, Tensor]) -> None:
        """Step of one group; takes the copies that moved with it out of ``left``."""
        params = [param for param in group["params"] if param.grad is not None]
        if any(param.grad.is_sparse for param in params):
            raise RuntimeError("AdamWMomentum does not take sparse gradients; expected embeddings with sparse=False")
        states = [self._state_of(param) for param in params]
        copies = [left.pop(param, None) for param in params]
        adamw_momentum_step_(
            [own_rows(param) for param in params],
            [own_rows(param.grad).contiguous() for param in params],
            [own_rows(state["exp_avg"]) for state in states],
            [own_rows(state["exp_avg_sq"]) for state in states],
            [state["step"] for state in states],
            [None if copy is None else own_rows(copy) for copy in copies],
            **{name: group[name] for name in ("lr", "betas", "eps", "weight_decay")},
            momentum=self.momentum,
            grad_factor=grad_factor,
            found_inf=getattr(self, "found_inf", None),
        )

    def _follow(self, copies: dict[Tensor, Tensor]) -> None:
        own = [(own_rows(copy), own_rows(param)) for param, copy in copies.items()]
        momentum_update_([copy for copy, _ in own], [param for _, param in own], self.momentum)
        self.copies_behind = False

    def _state_of(self, param: Tensor) -> dict[str, Tensor]:
        state = self.state[param]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=param.device)
            state["exp_avg"] = torch.zeros_like(param)
            state["exp_avg_sq"] = torch.zeros_like(param)
        return state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, with its own options where it states any; one that is refused is not there."""
        super().add_param_group(param_group)
        try:
            self._check_group(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    def _check_group(self, group: dict[str, Any]) -> None:
        check_numbers(group["lr"], group["betas"], group["eps"], group["weight_decay"], self.momentum)
        for i, param in enumerate(group["params"]):
            if param.dtype not in (torch.float32, torch.float64) or not param.is_contiguous():
                layout = "contiguous" if param.is_contiguous() else "strided"
                raise ValueError(f"params[{i}] is {layout} {param.dtype}; expected contiguous torch.float32")

    def _check_copies(self) -> None:
        optimised = {param for group in self.param_groups for param in group["params"]}
        for i, (param, copy) in enumerate(self.copies.items()):
            if copy in optimised and copy.requires_grad:  # model.parameters() lists copies too; they get no gradient
                raise ValueError(f"momentum_pairs[{i}] has an optimised parameter as the copy; expected (copy, param)")
            if copy.shape != param.shape or copy.dtype != param.dtype or copy.device != param.device:
                raise ValueError(
                    f"momentum_pairs[{i}] has a copy {tuple(copy.shape)} {copy.dtype} on {copy.device}; expected "
                    f"{tuple(param.shape)} {param.dtype} on {param.device} as its parameter"
                )

    def state_dict(self) -> dict[str, Any]:
        """As `torch.optim.AdamW`'s; the option ``copies_step`` records the step up to which the copies have followed."""
        state = super().state_dict()
        for group in state["param_groups"]:
            group["copies_step"] = None if self.copies_behind else self._last_step()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of this class or of `torch.optim.AdamW`, and find out whether the copies are behind."""
        _check_options(state_dict["param_groups"])
        super().load_state_dict(state_dict)
        followed_up_to = {group.pop("copies_step", None) for group in self.param_groups}
        self.copies_behind = bool(self.copies) and followed_up_to != {self._last_step()}

    def _last_step(self) -> int:
        return max((int(entry["step"]) for entry in self.state.values()), default=0)

    def __getstate__(self) -> dict[str, Any]:
        own = {"momentum": self.momentum, "copies": self.copies, "copies_behind": self.copies_behind}
        return super().__getstate__() | own

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group["fused"] = True
            for param in group["params"]:
                if entry := self.state.get(param):
                    step = torch.as_tensor(entry["step"], dtype=torch.float32, device=param.device)
                    entry["step"] = step.reshape(())


def _check_options(groups: Iterable[Mapping[str, Any]]) -> None:
    for group in groups:
        for option in ("amsgrad", "maximize", "differentiable"):
            if group.get(option):
                raise ValueError(f"the state has {option}=True; expected one of AdamW without {option}")
        if not group.get("decoupled_weight_decay", True):
            raise ValueError("the state is one of Adam; expected AdamW's, with decoupled weight decay")


def own_rows(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; a tensor that is not sharded, itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
