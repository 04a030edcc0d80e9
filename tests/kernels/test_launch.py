"""What launches read of torch's settings."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
