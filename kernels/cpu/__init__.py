"""numba kernels for the CPU: bit-for-bit the same per row whatever shares the batch with it."""
