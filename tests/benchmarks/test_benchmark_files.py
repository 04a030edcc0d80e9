"""Every benchmark file of the repository: its cases can be declared, and its variants are right, at tiny size."""

from __future__ import annotations

import sys

import pytest
import torch

from blip_fast.benchmarks.check import check_variants
from blip_fast.benchmarks.discovery import discover
from blip_fast.benchmarks.job import Setting
from blip_fast.config import BlipConfig

BENCHMARKS, BROKEN = discover()
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def nothing_compiled():
    with torch.compiler.set_stance("force_eager"):  # compiling takes minutes, and what is compiled is the same code
        yield


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny tensors: on a busy machine a second thread costs more than it brings
    yield
    torch.set_num_threads(threads)


def test_all_files_can_be_imported():
    assert not BROKEN
    assert {"captioning", "momentum", "pretrain_step", "reranking", "vqa_ranking"} <= {
        benchmark.name for benchmark in BENCHMARKS
    }


@pytest.fixture
def tiny_sizes(monkeypatch):
    """Width, vocabulary and heads that files of operations have as constants."""
    monkeypatch.setattr(BlipConfig, "base", BlipConfig.tiny)
    modules = [module for name, module in sys.modules.items() if name.startswith("blip_fast.benchmarks.ops.")]
    for module in modules + [benchmark.cases.__globals__ for benchmark in BENCHMARKS]:
        values = module if isinstance(module, dict) else vars(module)
        for name, size in {"C": 64, "V": 600, "H": 2}.items():
            if name in values:
                monkeypatch.setitem(values, name, size)


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda benchmark: benchmark.name)
@pytest.mark.usefixtures("tiny_sizes")
def test_every_available_variant_is_right(benchmark):
    cases = list(benchmark.cases(Setting(DEVICE, quick=benchmark.folder == "sweeps")))  # full ones are large
    assert bool(cases) == (benchmark.name != "published")  # which needs a checkout
    for case in cases:
        rows = check_variants(case, [variant for variant in case.variants if variant.unavailable is None])
        assert {name: row.reason for name, row in rows.items() if row.status != "ok"} == {}
        assert case.baseline.unavailable is None
        assert case.flops or case.bytes or case.items
        assert (case.size is not None) == (benchmark.folder == "sweeps")
