"""Kernels beside what the machine can do and what torch does: one kernel each, real shapes."""
