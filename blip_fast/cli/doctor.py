"""`blip-fast doctor`: what works on this machine, and why the rest does not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess

import click
import torch
from rich.console import Console
from rich.table import Table

import blip_fast
import blip_fast.ops
from blip_fast import native
from blip_fast.ops.registry import BACKENDS


@click.command()
def command() -> None:
    """Show which backends work on this machine, and why the others do not."""
    console = Console()
    console.print(_versions())
    console.print(_operations())
    for backend, reason in sorted(_reasons()):
        console.print(f"[bold]{backend}[/]: {reason}", highlight=False)


def _versions() -> Table:
    table = Table(title="Versions", title_justify="left", show_header=False)
    for name, value in versions().items():
        table.add_row(name, value)
    return table


def _operations() -> Table:
    table = Table(title="Operations", title_justify="left")
    table.add_column("operation")
    for backend in BACKENDS:
        table.add_column(backend)
    for name, reasons in blip_fast.backends().items():
        table.add_row(name, *("[green]available[/]" if reasons[b] is None else "[dim]no[/]" for b in BACKENDS))
    return table


def _reasons() -> set[tuple[str, str]]:
    """Each reason once: most hold for a whole backend."""
    return {(b, reason) for reasons in blip_fast.backends().values() for b, reason in reasons.items() if reason}


def versions() -> dict[str, str]:
    """Versions and tools of this machine, by name."""
    info = native.build_info()
    library = native.load_error() or "loaded"
    if library == "loaded" and info:
        cuda = f", CUDA {info['cuda']} for {info['cuda_archs']}" if info["cuda"] else ", without CUDA"
        library = f"built with {info['compiler']} ({info['multiversioning']}){cuda}"
    elif library == "loaded":
        library = "loaded; no build information (the Python headers were missing when it was built)"
    return {
        "blip_fast": blip_fast.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "transformers": _version("transformers"),
        "timm": _version("timm"),
        "C++ library": library,
        "CPU features": ", ".join(info.get("cpu_features", [])) or "unknown",
        "CUDA in torch": torch.version.cuda or "none",
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "NVIDIA driver": _driver(),
        "C++ compiler": _first_line("c++") or "not found",
        "nvcc": _last_line("nvcc") or "not found",
        "xformers": _version("xformers"),
        "NVIDIA apex": why_no_apex() or f"found ({_version('apex')})",
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def why_no_apex() -> str | None:
    """Why NVIDIA's apex is absent; None where it is there. The project of that name in the package index is unrelated."""
    if importlib.util.find_spec("apex") is None:
        return "not installed"
    nvidias = all(_has_module(name) for name in ("apex.optimizers", "apex.multi_tensor_apply"))
    return None if nvidias else "not installed (an unrelated package 'apex' is)"


def _has_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except Exception:  # an unrelated package may fail in any way while its parent is imported
        return False


def _driver() -> str:
    command = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return (_output(*command) or ["none"])[0]


def _first_line(tool: str) -> str | None:
    lines = _output(tool, "--version")
    return lines[0] if lines else None


def _last_line(tool: str) -> str | None:
    lines = _output(tool, "--version")
    return lines[-1] if lines else None


def _output(*command: str) -> list[str]:
    """Lines that the command prints; none where it is missing, fails or hangs."""
    if shutil.which(command[0]) is None:
        return []
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=20)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.strip().splitlines() if done.returncode == 0 else []
