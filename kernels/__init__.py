"""Triton kernels, each beside the torch function that it must equal (nothing else in this file)."""
