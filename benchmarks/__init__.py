"""Benchmarks of blip_fast: ``python -m benchmarks --list`` names them, README.md beside this file tells the method."""
