"""The compiled operations library: one shared object on libtorch's stable ABI, loaded once."""

from __future__ import annotations

import functools
import importlib
import json
from pathlib import Path
from typing import Any

import torch

LIBRARY = Path(__file__).with_name("libblip_fast.so")
BUILD_RECORD = Path(__file__).with_name("_build.json")


@functools.cache
def load_error() -> str | None:
    """Load the library; return None, or the reason why it is not there."""
    if not LIBRARY.exists():
        return build_record().get("reason") or "the C++ library is not built (see `make setup`)"
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        return f"the C++ library does not load: {error}"
    return None


@torch.compiler.assume_constant_result
def outruns_mkl() -> bool:
    """Whether our fp32 matrix product is about twice as fast as torch's (MKL): on AMD's CPUs from Zen 5 on."""
    return _says("outruns_mkl")


@torch.compiler.assume_constant_result
def mkl_at_full_rate() -> bool:
    """Whether torch's fp32 product (MKL) uses this CPU's widest vectors: everywhere but on AMD's CPUs with AVX-512."""
    return _says("mkl_at_full_rate")


@torch.compiler.assume_constant_result
def multiplies_by_thirds() -> bool:
    """Whether our fp32 product of large matrices is made of bfloat16's, faster than any in fp32: on CPUs with AMX."""
    return _says("multiplies_by_thirds")


@functools.cache  # asked at every product
def _says(fact: str) -> bool:
    return load_error() is None and getattr(torch.ops.blip_fast_native, fact)()


@functools.cache
def build_record() -> dict[str, Any]:
    """What setup.py wrote about the build: ``reason`` is set where no library was made."""
    return json.loads(BUILD_RECORD.read_text()) if BUILD_RECORD.exists() else {}


@functools.cache
def build_info() -> dict[str, Any]:
    """Versions, flags, CUDA architectures and CPU features, from the ``_C`` module; empty without a native build."""
    try:
        module = importlib.import_module("blip_fast._C")
    except ImportError:
        return {}
    return {**module.build_info(), "cpu_features": module.cpu_features()}
