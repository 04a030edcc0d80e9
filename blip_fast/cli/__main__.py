"""`python -m blip_fast.cli` is `blip-fast`."""

from __future__ import annotations

from blip_fast.cli import main

main(prog_name="blip-fast")
