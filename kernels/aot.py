"""Ahead-of-time compilation of the Triton kernels for GPUs that are not there: registers, spills, shared memory, occupancy.

Each kernel file lists its `SPECIMENS`: kernels with the argument types and the configurations that really run. They are
compiled to machine code by Triton's own ptxas and read with its cuobjdump, so neither a GPU nor a CUDA toolkit is needed.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton

ARCHS = (80, 90, 100)
# Per multiprocessor: registers, bytes of shared memory (and per block), threads, blocks. CUDA C++ Programming Guide.
LIMITS = {
    80: {"registers": 65536, "shared": 167936, "shared_per_block": 166912, "threads": 2048, "blocks": 32},
    86: {"registers": 65536, "shared": 102400, "shared_per_block": 101376, "threads": 1536, "blocks": 16},
    89: {"registers": 65536, "shared": 102400, "shared_per_block": 101376, "threads": 1536, "blocks": 24},
    90: {"registers": 65536, "shared": 233472, "shared_per_block": 232448, "threads": 2048, "blocks": 32},
    100: {"registers": 65536, "shared": 233472, "shared_per_block": 232448, "threads": 2048, "blocks": 32},
    120: {"registers": 65536, "shared": 102400, "shared_per_block": 101376, "threads": 1536, "blocks": 24},
}


@dataclasses.dataclass(frozen=True)
class Specimen:
    """One kernel as it is launched: Triton types of its arguments, values of its constants, warps and stages."""

    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int = 2
    label: str = ""
    divisible_by_16: tuple[str, ...] = ()  # besides the pointers, which torch's allocator aligns

    @property
    def name(self) -> str:
        """Name of the kernel function."""
        return self.kernel.__name__


@dataclasses.dataclass(frozen=True)
class Usage:
    """What one compiled kernel takes of a multiprocessor."""

    kernel: str
    label: str
    arch: int
    num_warps: int
    registers: int  # per thread
    spills: int  # bytes of local memory per thread
    shared: int  # bytes per block
    occupancy: float  # share of the multiprocessor's threads that can be resident


def compile_specimen(specimen: Specimen, arch: int) -> Usage:
    """Compile for ``sm_<arch>`` and read the resource usage from the machine code."""
    from triton.backends.compiler import GPUTarget

    source, options = _source(specimen)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    registers, spills = _resource_usage(compiled.asm["cubin"])
    shared = compiled.metadata.shared
    occupancy = _occupancy(arch, registers, shared, specimen.num_warps)
    return Usage(specimen.name, specimen.label, arch, specimen.num_warps, registers, spills, shared, occupancy)


def lower_specimen(specimen: Specimen, arch: int, ones: tuple[str, ...] = ()) -> str:
    """Triton's IR before any optimisation. A launch makes constants of integers that are 1: the arguments in ``ones`` are."""
    from triton._C.libtriton import ir
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import make_backend

    target = GPUTarget("cuda", arch, 32)
    source, options = _source(specimen, ones)
    backend, context = make_backend(target), ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    parsed = backend.parse_options(options)
    codegen = backend.get_codegen_implementation(parsed)
    return str(source.make_ir(target, parsed, codegen, backend.get_module_map(), context))


def _source(specimen: Specimen, ones: tuple[str, ...] = ()) -> tuple[Any, dict[str, int]]:
    constants = specimen.constants | dict.fromkeys(ones, 1)
    types = {name: kind for name, kind in specimen.signature.items() if name not in ones}
    order = [name for name in specimen.kernel.arg_names if name in types or name in constants]
    signature = {name: types.get(name, "constexpr") for name in order}
    aligned = [n for n in order if signature[n].startswith("*") or (n in specimen.divisible_by_16 and n in types)]
    attributes = {(order.index(n),): [["tt.divisibility", 16]] for n in aligned}
    source = triton.compiler.ASTSource(specimen.kernel, signature, constants, attributes)
    return source, {"num_warps": specimen.num_warps, "num_stages": specimen.num_stages}


def _resource_usage(cubin: bytes) -> tuple[int, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        report = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    registers = max(int(n) for n in re.findall(r"REG:(\d+)", report.stdout))
    local = max(int(n) for n in re.findall(r"(?:STACK|LOCAL):(\d+)", report.stdout))
    return registers, local


def _occupancy(arch: int, registers: int, shared: int, num_warps: int) -> float:
    limits = LIMITS[arch]
    per_warp = -(-registers * 32 // 256) * 256  # registers are allocated in units of 256 per warp
    by_registers = limits["registers"] // (per_warp * num_warps) if registers else limits["blocks"]
    by_shared = limits["shared"] // (shared + 1024)  # the system keeps 1 KB per block
    blocks = min(by_registers, by_shared, limits["blocks"], limits["threads"] // (32 * num_warps))
    return blocks * num_warps * 32 / limits["threads"]


def specimens() -> list[tuple[str, Specimen]]:
    """All specimens of all kernel files, with the name of the operation."""
    package = importlib.import_module("blip_fast.kernels")
    modules = [info.name for info in pkgutil.iter_modules(package.__path__)]
    found = []
    for name in sorted(modules):
        module = importlib.import_module(f"blip_fast.kernels.{name}")
        found += [(name, specimen) for specimen in getattr(module, "SPECIMENS", [])]
    return found
