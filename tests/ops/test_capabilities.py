"""The kernels of processors without AVX-512, and without AVX2, on this one: ATEN_CPU_CAPABILITY is torch's switch and ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from blip_fast import native

HERE = Path(__file__).parent
ATTENTION = ("cross_attention", "packed_self_attention", "decode_layer")
PRODUCTS = ("linear", "linear_cross_entropy", "contrastive", "hard_negatives", "dropout_add_layer_norm")


# In plain SSE, single numbers of the products are a matter of luck against eager's.
@pytest.mark.skipif(native.load_error() is not None, reason="the C++ library is not built")
@pytest.mark.parametrize(("capability", "operations"), [("avx2", ATTENTION + PRODUCTS), ("default", ATTENTION)])
def test_with_less_than_this_processor_has(capability, operations):
    files = [HERE / f"test_{name}.py" for name in operations]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "cpu", "-m", "not triton", *files]
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    run = subprocess.run(command, cwd=HERE.parents[1], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-3000:]  # 5 where nothing was collected
