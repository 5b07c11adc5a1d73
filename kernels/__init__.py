"""Triton kernels, each beside the plain torch function that it must equal (this file stays a docstring)."""
