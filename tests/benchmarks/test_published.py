"""The peer that runs the published code, on a small stand-in for its checkout."""

from __future__ import annotations

import sys

import pytest
import torch

from blip_fast import reference
from blip_fast.benchmarks.peers.published import PublishedPretrain, imported
from blip_fast.config import BlipConfig

# Imports what the published code imports, and has one parameter and one buffer of the published names.
CODE = """
from fairscale.nn.checkpoint.checkpoint_activations import checkpoint_wrapper
from timm.models.helpers import named_apply, adapt_input_conv
from timm.models.layers import trunc_normal_, DropPath
from timm.models.vision_transformer import _cfg, PatchEmbed
from transformers.file_utils import ModelOutput
from transformers.modeling_utils import (
    PreTrainedModel, apply_chunking_to_forward, find_pruneable_heads_and_indices, prune_linear_layer
)
from transformers.models.bert.configuration_bert import BertConfig
import json
import torch
from models.blip import init_tokenizer

concat_all_gather = None

class BLIP_Pretrain(torch.nn.Module):
    def __init__(self, med_config, embed_dim, **options):
        super().__init__()
        assert len(init_tokenizer()) == 0
        self.settings = BertConfig.from_json_file(med_config), options
        torch.hub.load_state_dict_from_url(url="https://example.org")
        self.temp = torch.nn.Parameter(torch.zeros(()))
        for name in NAMES:
            self.add_module(name, torch.nn.Module())

    def forward(self, image, caption, alpha):
        ids = self.tokenizer(caption, padding="max_length").to(image.device).input_ids
        draws = [int(torch.multinomial(torch.ones(3), 1)) for _ in range(6)]
        return self.temp * 1, ids.sum() * 1.0, concat_all_gather(torch.tensor(float(draws[0] * 10 + draws[3])))
"""


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "blip.py").write_text("init_tokenizer = None\n")
    (tmp_path / "models" / "blip_pretrain.py").write_text(CODE)
    return tmp_path


def test_the_checkout_runs_on_our_tensors_with_given_negatives(checkout):
    import transformers.modeling_utils

    model = reference.BlipPretrain(BlipConfig.tiny(vit_width=768, vit_depth=12, vit_heads=12, text_layers=1))
    own = transformers.modeling_utils.PreTrainedModel
    modules = [name for name, module in model.named_modules(remove_duplicate=False) if name]
    text = CODE.replace(
        "for name in NAMES:\n            self.add_module(name, torch.nn.Module())", f"add(self, {modules!r})"
    )
    add = (
        "def add(root, names):\n    for name in names:\n        parent, _, last = name.rpartition('.')\n"
        "        root.get_submodule(parent).add_module(last, torch.nn.Module())\n"
    )
    (checkout / "models" / "blip_pretrain.py").write_text(text + add)
    published = PublishedPretrain(checkout, model)
    assert published.model.temp is model.temp
    assert published.model.image_queue is model.image_queue
    assert published.model.settings[0].num_hidden_layers == 1
    ids, mask = torch.full((3, 4), 5), torch.ones(3, 4)
    out = published(torch.zeros(3, 1), ids, mask, 0.4, (torch.tensor([2, 0, 1]), torch.tensor([1, 2, 0])))
    assert out.loss_itm == 60
    assert out.loss_lm == 21  # first draws: images for texts, then texts for images
    assert out.loss == out.loss_itc + out.loss_itm + out.loss_lm
    assert transformers.modeling_utils.PreTrainedModel is own
    assert "fairscale" not in sys.modules
    assert "models" not in sys.modules


def test_a_folder_without_the_code_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no models/blip_pretrain\.py"), imported(tmp_path):
        pass


def test_other_sizes_are_refused(checkout):
    with pytest.raises(ValueError, match=r"vit_width=\d+, vit_depth=\d+; expected the published 768, 12"):
        PublishedPretrain(checkout, reference.BlipPretrain(BlipConfig.tiny()))
