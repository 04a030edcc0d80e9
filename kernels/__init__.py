"""Triton kernels, one file per operation. Imported by the operations when the `triton` backend is used."""
