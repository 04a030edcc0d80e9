"""Every benchmark file of the repository: its cases can be declared, and its variants are right, at tiny size."""

from __future__ import annotations

import re
import sys

import pytest
import torch

from blip_fast.benchmarks.check import check_variants
from blip_fast.benchmarks.discovery import discover
from blip_fast.benchmarks.environment import REPOSITORY
from blip_fast.benchmarks.job import Setting
from blip_fast.benchmarks.roofline import StayOnHost
from blip_fast.config import BlipConfig

BENCHMARKS, BROKEN, LACKING = discover()
CPU_ONLY = ("decode_layer", "linear", "picture_loading")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def nothing_compiled():
    with torch.compiler.set_stance("force_eager"):  # compiling takes minutes, and what is compiled is the same code
        yield


def test_all_files_can_be_imported():
    assert not BROKEN + LACKING
    assert {"captioning", "momentum", "pretrain_step", "reranking", "vqa_ranking"} <= {
        benchmark.name for benchmark in BENCHMARKS
    }


@pytest.fixture
def tiny_sizes(monkeypatch):
    """Widths, vocabulary, heads, and sizes of images in pixels and tokens, which files have as constants."""
    monkeypatch.setattr(BlipConfig, "base", BlipConfig.tiny)
    modules = [module for name, module in sys.modules.items() if name.startswith("blip_fast.benchmarks.ops.")]
    for module in modules + [benchmark.cases.__globals__ for benchmark in BENCHMARKS]:
        values = module if isinstance(module, dict) else vars(module)
        for name, size in {"C": 64, "V": 600, "H": 2, "SIZE": 64, "TOKENS": 65}.items():
            if isinstance(values.get(name), int):
                monkeypatch.setitem(values, name, size)


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda benchmark: benchmark.name)
@pytest.mark.usefixtures("tiny_sizes")
def test_every_available_variant_is_right(benchmark):
    cases = list(benchmark.cases(Setting(DEVICE, quick=benchmark.folder == "sweeps")))  # full ones are large
    if benchmark.name in ("published", *(CPU_ONLY if DEVICE.type == "cuda" else ())):
        assert not cases  # the first needs a checkout
    else:
        assert cases
    for case in cases:
        rows = check_variants(case, [variant for variant in case.variants if variant.unavailable is None])
        assert {name: row.reason for name, row in rows.items() if row.status != "ok"} == {}
        assert case.baseline.unavailable is None
        assert not any(variant.cuda_graph for variant in case.variants if variant.name == "blip_fast reference")
        assert case.flops or case.bytes or case.items
        assert (case.size is not None) == (benchmark.folder == "sweeps")


class HostGenerator(torch.Generator):
    """A generator on the CPU, whatever it is meant for."""

    def __new__(cls, device: object = None) -> HostGenerator:
        return super().__new__(cls)


@pytest.mark.usefixtures("tiny_sizes")
def test_the_timing_of_a_run_on_a_gpu_fits_into_its_time(monkeypatch):
    """Of operations and models, most important first, after a build and tests that took as long as they may."""
    limits = dict(re.findall(r"^(\w+)=(\d+)", (REPOSITORY / "benchmarks" / "gpu.sh").read_text(), re.MULTILINE))
    left = int(limits["total"]) - sum(int(limits[name]) for name in ("build_limit", "test_limit", "reserve"))
    setting = Setting(torch.device("cuda"), quick=False, limited=True)
    monkeypatch.setattr(torch, "Generator", HostGenerator)
    counts = {}
    for benchmark in (benchmark for benchmark in BENCHMARKS if benchmark.folder != "sweeps"):
        with StayOnHost():
            counts[benchmark.name] = len(list(benchmark.cases(setting)))
    assert list(counts)[:2] == ["pretrain_step", "captioning"]
    assert all((count == 0) == (name in ("published", *CPU_ONLY)) for name, count in counts.items())
    assert sum(counts.values()) * (setting.seconds + setting.replay_seconds) < left


@pytest.mark.usefixtures("tiny_sizes")
@pytest.mark.parametrize("name", ["momentum", "adamw_momentum"])
def test_no_variant_moves_the_copies_of_another(name):
    """The published loop gives its copies new memory: kernels that know the old addresses would have to look again."""
    (benchmark,) = (found for found in BENCHMARKS if found.name == name)
    case = next(iter(benchmark.cases(Setting(torch.device("cpu")))))
    inputs = case.inputs(0)
    *_, copies, own = inputs if name == "adamw_momentum" else (inputs[0], inputs[2])
    addresses = [copy.data_ptr() for copy in copies if copy is not None]
    case.baseline.run(*inputs)
    assert [copy.data_ptr() for copy in copies if copy is not None] == addresses
    assert all(one is None or one.data_ptr() not in addresses for one in own)
