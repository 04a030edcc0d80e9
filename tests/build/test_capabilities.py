"""The kernels of processors without AVX-512, and without AVX2, on this one: ATEN_CPU_CAPABILITY is torch's switch and ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from blip_fast import native

TESTS = Path(__file__).parents[1]
# Not those that hold single numbers against eager's, whose rounding follows the processor and not the switch.
OPERATIONS = ("cross_attention", "packed_self_attention", "decode_layer", "hard_negatives", "dropout_add_layer_norm")


@pytest.mark.skipif(native.load_error() is not None, reason="the C++ library is not built")
@pytest.mark.parametrize("capability", ["avx2", "default"])
def test_with_less_than_this_processor_has(capability):
    files = [TESTS / "ops" / f"test_{name}.py" for name in OPERATIONS]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "cpu", "-m", "not triton", *files]
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    run = subprocess.run(command, cwd=TESTS.parent, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-3000:]  # 5 where nothing was collected


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="this CPU, or the switch, has no AVX2")
@pytest.mark.skipif(native.load_error() is not None, reason="the C++ library is not built")
def test_the_switch_is_heard():
    program = (
        "import torch; from blip_fast.ops import linear\n"
        "input, weight = torch.arange(3 * 768).view(3, 768) / 7, torch.arange(64 * 768).remainder(97).view(64, 768) / 13\n"
        "print(linear(input, weight).view(torch.int32).tolist())"
    )

    def bits(**switch: str) -> str:
        command = [sys.executable, "-c", program]
        return subprocess.run(command, env={**os.environ, **switch}, capture_output=True, text=True, check=True).stdout

    assert bits(ATEN_CPU_CAPABILITY="default") != bits()  # sums of other lanes
