"""Benchmarks of blip_fast: ``blip-fast bench list`` names them, README.md beside this file tells the method."""
