"""Models whose weights are int8, on a CPU: torch's dynamically quantised linear layers.

Weights are rounded per output channel, activations per call; products are int8 x int8 with int32 sums. Texts are no longer
those of fp32, bit by bit; `python -m blip_fast.benchmarks.models.int8_agreement` says how often they agree.
"""

from __future__ import annotations

import copy
import warnings
from typing import TypeVar

from torch import nn
from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

Model = TypeVar("Model", bound=nn.Module)

QUANTIZED = ("visual_encoder.", "text_decoder.")
# Keys and values of images and, where answers are ranked, the output layer are used through their weights.
THROUGH_WEIGHTS = (".crossattention.self.key", ".crossattention.self.value")
RANKING_HEAD = "text_decoder.cls.predictions.decoder"


def to_int8(model: Model) -> Model:
    """A copy of a captioner or question answerer, in eval mode, whose image encoder and text decoder have int8 weights.

    It generates on a CPU; it cannot be trained or saved.

    Raises ValueError for a model without text decoder, or one that is not on the CPU.
    """
    names = {name for name, module in model.named_modules() if type(module) is nn.Linear and name.startswith(QUANTIZED)}
    if RANKING_HEAD not in names:
        raise ValueError(f"model is a {type(model).__name__}; int8 weights are for models that generate text")
    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        raise ValueError(f"model is on {next(model.parameters()).device}; int8 weights are for the CPU")
    names = {name for name in names if not name.endswith(THROUGH_WEIGHTS)}
    if hasattr(model, "rank_ids"):
        names.discard(RANKING_HEAD)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torchao, its successor, is a package of its own
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)
        return quantize_dynamic(copy.deepcopy(model).eval(), dict.fromkeys(names, per_channel_dynamic_qconfig))
