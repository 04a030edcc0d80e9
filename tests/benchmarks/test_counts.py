"""FLOPs of BLIP-base's pre-training step, and reads of the device."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from blip_fast import models, reference
from blip_fast.benchmarks.captions import caption_lengths
from blip_fast.benchmarks.job import Setting
from blip_fast.benchmarks.models import counts
from blip_fast.benchmarks.ops import packed_self_attention
from blip_fast.benchmarks.ops.contrastive import contrastive_case
from blip_fast.config import BlipConfig

TINY = BlipConfig.tiny(vocab_size=2000, text_layers=2, vit_depth=2, queue_size=64)


def flops_of_base(model_class):
    """Of twelve layers, from those of one and of two: what a further layer adds is always the same."""
    one, two = (
        sum(counts.pretraining_flops(model_class, BlipConfig.base(text_layers=n, vit_depth=n), counts.BATCH).values())
        for n in (1, 2)
    )
    return one + 11 * (two - one)


def test_a_fused_step_of_the_base_model_has_at_most_0_645_of_the_flops():
    published, ours = map(flops_of_base, (reference.BlipPretrain, models.BlipPretrain))
    assert published / counts.BATCH == pytest.approx(306.58e9, rel=1e-3)  # by hand: layers, tokens and widths
    assert ours / published <= counts.FLOPS_AIM


def test_attention_on_a_cpu_is_counted_in_both_directions():
    query, key, value = (torch.randn(2, 3, length, 8, requires_grad=True) for length in (5, 7, 7))
    flops = counts.count_flops(lambda: F.scaled_dot_product_attention(query, key, value).sum().backward())
    product = 2 * 2 * 3 * 5 * 7 * 8
    assert sum(flops.values()) == (2 + 5) * product  # the backward pass computes the scores anew


def test_shapes_without_values_cost_what_the_real_step_costs():
    counted = counts.pretraining_flops(reference.BlipPretrain, TINY, batch=3)
    model = reference.BlipPretrain(TINY).train()
    ids, mask = counts.padded_texts(counts.caption_lengths(3, 0), counts.PADDED_LENGTH, TINY, 0)
    image, rows = torch.randn(3, 3, TINY.image_size, TINY.image_size), torch.arange(3)
    step = counts.count_flops(lambda: model(image, ids, mask, 0.4, (rows, rows)).loss.backward())
    assert counted == step


def test_a_fused_step_reads_nothing_and_the_published_one_each_negative():
    assert counts.fused_reads(TINY, batch=3) == []
    assert counts.published_reads(TINY, batch=3) == ["aten::_local_scalar_dense"] * 6


def test_contrastive_and_packed_attention_declare_the_fewest_operations():
    case = contrastive_case(3, 17, 0.4, torch.float32, torch.device("cpu"))
    inputs = case.inputs(0)
    assert sum(counts.count_flops(lambda: case.baseline.run(*inputs)).values()) == case.flops
    lengths = caption_lengths(75, 0)
    setting = Setting(torch.device("cpu"), quick=False)
    flops = {case.name: case.flops for case in packed_self_attention.cases(setting)}
    product = 12 * packed_self_attention.H * packed_self_attention.D
    assert flops["75 captions, bidirectional, float32"] == product * int(lengths.square().sum())
    assert flops["75 captions, causal, float32"] == product * int(sum(n * (n + 1) // 2 for n in lengths.tolist()))
