"""What a reader needs to know about the machine and the versions behind the numbers of a run."""

from __future__ import annotations

import platform

import torch
import torchvision
import transformers

import blip_fast


def environment(device: torch.device, backend: str | None = None) -> dict[str, str]:
    """Device, threads, backend (None: the fastest available one) and versions, by name."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": f"{device} ({name})",
        "threads": str(torch.get_num_threads()),
        "backend": backend or "fastest available",
        "python": platform.python_version(),
        "blip_fast": blip_fast.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "transformers": transformers.__version__,
    }
