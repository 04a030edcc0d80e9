"""``python -m blip_fast.train PROGRAM ...``, for `torchrun -m blip_fast.train`; the same as ``blip-fast train``."""

from __future__ import annotations

from blip_fast.cli.train import command

if __name__ == "__main__":
    command()
