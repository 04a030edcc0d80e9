"""Puts a state_dict with published names into a model, by the published rules, and says what it did."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from blip_fast.checkpoints.heads import HEADS, QUEUES, head_of
from blip_fast.checkpoints.pos_embed import interpolate_pos_embed

_POSITION_EMBEDDINGS = ("visual_encoder.pos_embed", "visual_encoder_m.pos_embed")
_POSITION_IDS = "embeddings.position_ids"  # constant numbers, which newer libraries do not store


@dataclass
class LoadReport:
    """What loading a checkpoint did not do plainly; four lists of names.

    Attributes:
        missing: of the model, absent from the checkpoint; they keep their initial values.
        unexpected: of the checkpoint, absent from the model.
        reshaped: position embeddings, interpolated to another image size.
        dropped: in both, but of another shape (or a pointer into a queue of another size); they keep their initial
            values.
    """

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    @property
    def initial(self) -> list[str]:
        """Names of the model that keep their initial values."""
        return self.missing + self.dropped


def tied_names(model: nn.Module) -> dict[str, str]:
    """Each further name of a parameter or buffer with its first one."""
    first: dict[int, str] = {}
    names = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: first[id(tensor)] for name, tensor in names if first.setdefault(id(tensor), name) != name}


def load_state(model: nn.Module, state: Mapping[str, Tensor]) -> LoadReport:
    """Load a state_dict with published names as the published code does.

    Position embeddings are interpolated to the model's image size, tensors of other shapes are left out (queues of
    another size start anew), and NLVR2's two cross-attentions both start from the one of other checkpoints. A tied
    parameter may be present under any of its names.
    """
    matching, report = fit(model, state)
    model.load_state_dict(matching, strict=False)
    return report


def fit(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], LoadReport]:
    """The tensors that can be loaded, of the model's shapes, and the report; the model may be on device "meta"."""
    report, own = LoadReport(), model.state_dict()
    state = dict(state)
    if any(".crossattention.self0." in name for name in own):
        _duplicate_cross_attention(state)
    _complete(state, own, tied_names(model))
    for name in _POSITION_EMBEDDINGS:
        if name in state and name in own and state[name].shape[1] != own[name].shape[1]:
            state[name] = interpolate_pos_embed(state[name], own[name].shape[1] - 1)
            report.reshaped.append(name)
    report.missing = [name for name in own if name not in state]
    report.unexpected = [name for name in state if name not in own]
    report.dropped = [name for name in own if name in state and state[name].shape != own[name].shape]
    if any(name in ("image_queue", "text_queue") for name in report.dropped):
        queues = [name for name in own if re.fullmatch(QUEUES, name) and name in state]
        report.dropped += [name for name in queues if name not in report.dropped]
    return {name: state[name] for name in own if name not in report.initial}, report


def check_complete(report: LoadReport, head: str, state: Mapping[str, Tensor], source: object) -> None:
    """ValueError unless a checkpoint has all that this head cannot do without."""
    class_name, anew = HEADS[head].class_name, HEADS[head].trained_anew
    found = head_of(state)
    described = f"{source} is a checkpoint of {HEADS[found].class_name}" if found else f"{source} is of no known head"
    if found in HEADS[head].refused:
        raise ValueError(f"{described}, whose tensors of the same names mean something else than {class_name}'s")
    lacking = [name for name in report.initial if not re.fullmatch(anew, name)]
    if lacking:
        raise ValueError(
            f"{described} and does not fit {class_name}: {len(lacking)} of its tensors are missing or have another "
            f"shape, '{lacking[0]}' first"
        )


def materialise(model: nn.Module) -> None:
    """Replace a model's tensors on device "meta" by uninitialised ones on the CPU; what was tied stays tied."""
    made: dict[Tensor, Tensor] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if parameter not in made:
                made[parameter] = nn.Parameter(torch.empty_like(parameter, device="cpu"), parameter.requires_grad)
            setattr(module, name, made[parameter])
        for name, buffer in list(module.named_buffers(recurse=False, remove_duplicate=False)):
            if buffer not in made:
                made[buffer] = torch.empty_like(buffer, device="cpu")
            setattr(module, name, made[buffer])


def _duplicate_cross_attention(state: dict[str, Tensor]) -> None:
    """Give both of NLVR2's cross-attentions the weights of the single one, as published (paper section 5.4)."""
    for name in [name for name in state if ".crossattention." in name]:
        for single, pair in ((".crossattention.self.", "self"), (".crossattention.output.dense.", "output.dense")):
            if single in name:
                tensor = state.pop(name)
                for number in "01":
                    state[name.replace(single, f".crossattention.{pair}{number}.")] = tensor


def _complete(state: dict[str, Tensor], own: Mapping[str, Tensor], ties: Mapping[str, str]) -> None:
    """Add what follows from the rest: tied parameters under their other names, and position numbers."""
    for alias, name in ties.items():
        if alias in state:
            state.setdefault(name, state[alias])
    for alias, name in ties.items():
        if name in state:
            state.setdefault(alias, state[name])
    for name, tensor in own.items():
        if name.endswith(_POSITION_IDS):
            state.setdefault(name, torch.arange(tensor.shape[-1])[None])
