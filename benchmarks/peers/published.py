"""The published code, from a checkout of its repository that the user gives, in this process and with our weights.

It was written for transformers 4.15, timm 0.4 and fairscale. What it imports from them and is gone or has moved is put in place
here; none of it computes anything in a training step. Three more things are replaced in the pre-training model: the download of
its first weights, the gathering of features over ranks (without a process group it crashes), and, so that the answers can be
compared, the draws of negatives, which are given.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from blip_fast import reference
from blip_fast.config import TEXT_FIELDS, BlipConfig
from blip_fast.outputs import Negatives, PretrainOutput


class PublishedPretrain(nn.Module):
    """`BLIP_Pretrain` of the checkout on the parameters and buffers of ``model``, called as ours are.

    Raises ValueError where ``checkout`` holds no published code, or the sizes are not those that it can have.
    """

    def __init__(self, checkout: Path, model: reference.BlipPretrain) -> None:
        super().__init__()
        config = model.config
        if (config.vit_width, config.vit_depth) != (768, 12):
            raise ValueError(
                f"vit_width={config.vit_width}, vit_depth={config.vit_depth}; expected the published 768, 12"
            )
        with imported(checkout) as code, tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "config.json"
            file.write_text(json.dumps(text_config(config)))
            options = {"image_size": config.image_size, "queue_size": config.queue_size, "momentum": config.momentum}
            self.model = code.BLIP_Pretrain(med_config=str(file), embed_dim=config.embed_dim, **options)
        self.code = code
        self.momentum_pairs = model.momentum_pairs
        share_tensors(self.model, model)

    def forward(
        self, image: Tensor, input_ids: Tensor, attention_mask: Tensor, alpha: float, negatives: tuple[Tensor, Tensor]
    ) -> PretrainOutput:
        """One step's losses, as `BlipPretrain.forward`; ``negatives`` are needed."""
        self.model.tokenizer = Tokens(input_ids, attention_mask)
        with mock.patch.object(torch, "multinomial", side_effect=torch.cat(negatives).split(1)):
            loss_itc, loss_itm, loss_lm = self.model(image, None, alpha)
        loss = loss_itc + loss_itm + loss_lm
        return PretrainOutput(loss, loss_itc, loss_itm, loss_lm, Negatives(*negatives))

    def get_parameter(self, target: str) -> nn.Parameter:
        """The parameter of that published name."""
        return self.model.get_parameter(target)


class Tokens:
    """Stands for the published tokenizer and its output: ids and mask that are known already."""

    enc_token_id, bos_token_id, pad_token_id = BlipConfig().enc_token_id, BlipConfig().dec_token_id, 0

    def __init__(self, input_ids: Tensor, attention_mask: Tensor) -> None:
        self.input_ids, self.attention_mask = input_ids, attention_mask

    def __call__(self, *args: Any, **options: Any) -> Tokens:
        return self

    def to(self, device: torch.device) -> Tokens:
        return self


class Pretrained(nn.Module):
    """What the published text model uses of transformers' base class of models."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.dtype = torch.float32

    @classmethod
    def from_pretrained(cls, name: str, config: Any, **options: Any) -> Pretrained:
        """A model with first weights; ours take their place."""
        return cls(config, **options)

    def init_weights(self) -> None:
        """First weights are of no interest."""

    def resize_token_embeddings(self, count: int) -> None:
        """The configuration has the final size."""

    def get_head_mask(self, mask: None, layers: int) -> list[None]:
        """No head is switched off."""
        return [mask] * layers

    def invert_attention_mask(self, mask: Tensor) -> Tensor:
        """(B, L) of 1 and 0 to what is added to logits, as transformers 4.15 did in fp32."""
        return (1.0 - mask[:, None, None, :].to(self.dtype)) * -1e9


def apply_chunking(forward: Any, chunk_size: int, dim: int, *tensors: Tensor) -> Any:
    """transformers' chunked feed-forward, which is off by default."""
    return forward(*tensors)


def text_config(config: BlipConfig) -> dict[str, Any]:
    """Our configuration under the published names."""
    fields = {name: getattr(config, field) for name, field in TEXT_FIELDS.items()}
    return fields | {"hidden_act": "gelu", "add_cross_attention": True, "model_type": "bert", "pad_token_id": 0}


def share_tensors(published: nn.Module, model: nn.Module) -> None:
    """Give ``published`` the parameters and buffers of ``model``, by name."""
    modules = dict(published.named_modules(remove_duplicate=False))
    for kind in ("_parameters", "_buffers"):
        for prefix, module in model.named_modules(remove_duplicate=False):
            for name, tensor in getattr(module, kind).items():
                if tensor is not None:
                    getattr(modules[prefix], kind)[name] = tensor


@contextlib.contextmanager
def imported(checkout: Path) -> Iterator[Any]:
    """The module ``models.blip_pretrain`` of the checkout, ready to build models within the block."""
    if not (checkout / "models" / "blip_pretrain.py").is_file():
        raise ValueError(f"{checkout.name} has no models/blip_pretrain.py; expected a checkout of the published BLIP")
    with mock.patch.dict(sys.modules, stand_ins()), mock.patch.object(sys, "path", [str(checkout), *sys.path]):
        code: Any = importlib.import_module("models.blip_pretrain")
        with (
            mock.patch.object(code, "init_tokenizer", return_value=[]),  # only its length is asked for
            mock.patch.object(torch.hub, "load_state_dict_from_url", return_value={"model": {}}),
            mock.patch("builtins.print"),  # it prints every tied tensor
        ):
            code.concat_all_gather = nn.Identity()
            yield code


def stand_ins() -> dict[str, types.ModuleType]:
    """Modules that the published code imports and that are gone or lack something, by name."""
    import transformers.modeling_utils
    import transformers.utils
    from timm.layers import DropPath, trunc_normal_
    from timm.models import register_model
    from timm.models.vision_transformer import PatchEmbed

    unused: Any = None
    contents: dict[str, dict[str, Any]] = {
        "timm.models.helpers": {"named_apply": unused, "adapt_input_conv": unused},
        "timm.models.hub": {"download_cached_file": unused},
        "timm.models.layers": {"trunc_normal_": trunc_normal_, "DropPath": DropPath},
        "timm.models.registry": {"register_model": register_model},
        "timm.models.vision_transformer": {"_cfg": unused, "PatchEmbed": PatchEmbed},
        "transformers.file_utils": {"ModelOutput": transformers.utils.ModelOutput},
        "transformers.modeling_utils": {
            "PreTrainedModel": Pretrained,
            "apply_chunking_to_forward": apply_chunking,
            "find_pruneable_heads_and_indices": unused,
            "prune_linear_layer": unused,
        },
    }
    for name in ("fairscale", "fairscale.nn", "fairscale.nn.checkpoint"):
        contents[name] = {"__path__": []}
    contents["fairscale.nn.checkpoint.checkpoint_activations"] = {"checkpoint_wrapper": unused}
    modules = {}
    for name, values in contents.items():
        modules[name] = types.ModuleType(name)
        modules[name].__dict__.update(values)
    return modules
