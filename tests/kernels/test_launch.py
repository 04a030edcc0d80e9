"""What launches read of torch's settings and ask of a GPU."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from blip_fast.kernels.launch import shared_memory

SWITCHES = {
    "none": ("pass", "ieee"),
    "old": ("torch.set_float32_matmul_precision('high')", "tf32"),
    "older": ("torch.backends.cuda.matmul.allow_tf32 = True", "tf32"),
    "new": ("torch.backends.cuda.matmul.fp32_precision = 'tf32'", "tf32"),
    "new, for all": ("torch.backends.fp32_precision = 'tf32'", "tf32"),
}


@pytest.mark.parametrize(("switch", "expected"), SWITCHES.values(), ids=SWITCHES)
def test_precision_follows_every_switch(switch: str, expected: str) -> None:
    """In a process of its own: torch does not let the old and the new ones be mixed."""
    code = f"import torch; {switch}; from blip_fast.kernels.launch import precision as p; "
    code += "print(p(torch.float32), p(torch.float16))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [expected, "ieee"]


@pytest.mark.skipif(torch.version.cuda is None, reason="torch has no CUDA")
def test_torch_knows_what_launches_ask_of_a_gpu() -> None:
    assert {"multi_processor_count", "shared_memory_per_block_optin"} <= set(dir(torch._C._CudaDeviceProperties))
    assert shared_memory(torch.device("cpu")) == 232448
