"""What a result depends on besides the code: the machine, the versions, the commit. No host name, no paths."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import blip_fast
from blip_fast import native

REPOSITORY = Path(__file__).resolve().parent.parent
CPU_FOLDER = Path("/sys/devices/system/cpu/cpu0")
FALLBACK_CACHE_BYTES = 64 << 20  # where the system does not tell: a large one, so that inputs rotate enough


def machine(device: torch.device) -> dict[str, Any]:
    """Facts of the machine; a fact that cannot be read is None."""
    facts: dict[str, Any] = {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _find("/proc/cpuinfo", r"model name\s*:\s*(.+)") or platform.processor() or None,
        "cpus": os.cpu_count(),
        "physical_cores": _physical_cores(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "caches": cpu_caches(),
        "memory_bytes": _kibibytes(_find("/proc/meminfo", r"MemTotal:\s*(\d+) kB")),
        "governor": _read(CPU_FOLDER / "cpufreq/scaling_governor"),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }
    return facts | (_gpu(device) if device.type == "cuda" else {})


def versions() -> dict[str, str | None]:
    """Versions of what takes part; None for what is absent."""
    build = native.build_info()
    nvcc = re.search(r"release .*V([\d.]+)", _output(["nvcc", "--version"]) or "")
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _package_version("triton"),
        "numpy": np.__version__,
        "cuda": torch.version.cuda,
        "nvcc": nvcc[1] if nvcc else None,
        "compiler": _first_line(["c++", "--version"]),
        "blip_fast": blip_fast.__version__,
        "blip_fast compiler": build.get("compiler"),
        "blip_fast CUDA": f"{build['cuda']} for {build['cuda_archs']}" if build.get("cuda") else None,
    }


def now() -> str:
    """Date and time, UTC, ISO 8601."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def commit() -> tuple[str | None, bool | None]:
    """Commit of the checkout, and whether files differ from it (results aside); (None, None) outside of one."""
    if not (REPOSITORY / "pyproject.toml").is_file():  # installed: an enclosing repository would be another one
        return None, None
    git = ["git", "-C", str(REPOSITORY)]
    head = _first_line([*git, "rev-parse", "HEAD"])
    changes = _output([*git, "status", "--porcelain", "--", ".", ":!benchmarks/results"])
    return (head, bool(changes)) if head is not None and changes is not None else (None, None)


def cpu_caches() -> dict[str, int]:
    """Bytes of each data cache that the first core sees, by name: ``L1d``, ``L2``, ``L3``."""
    caches = {}
    for index in sorted(CPU_FOLDER.glob("cache/index*")):
        level, kind, size = (_read(index / name) for name in ("level", "type", "size"))
        kibibytes = re.fullmatch(r"(\d+)K", size or "")
        if kibibytes and kind in ("Data", "Unified"):
            caches[f"L{level}{'d' if kind == 'Data' else ''}"] = int(kibibytes[1]) * 1024
    return caches


def last_level_cache_bytes(device: torch.device) -> int:
    """Size of the largest cache of ``device``."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    return max(cpu_caches().values(), default=FALLBACK_CACHE_BYTES)


def _gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "gpu_memory_bytes": properties.total_memory,
        "gpu_multiprocessors": properties.multi_processor_count,
        "gpu_l2_bytes": properties.L2_cache_size,
        "gpu_capability": f"{properties.major}.{properties.minor}",
        "driver": _first_line(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
    }


def _physical_cores() -> int | None:
    """Cores, counting hyper-threads of one core once."""
    siblings = {_read(cpu / "topology/thread_siblings_list") for cpu in CPU_FOLDER.parent.glob("cpu[0-9]*")}
    return len(siblings - {None}) or None


def _package_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _read(path: str | Path) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _find(path: str, pattern: str) -> str | None:
    match = re.search(pattern, _read(path) or "")
    return match[1].strip() if match else None


def _kibibytes(text: str | None) -> int | None:
    return int(text) * 1024 if text else None


def _output(command: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _first_line(command: Sequence[str]) -> str | None:
    output = _output(command)
    return output.splitlines()[0] if output else None
