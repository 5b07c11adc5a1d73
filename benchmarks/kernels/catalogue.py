"""Kernel benchmarks by name."""

from collections.abc import Callable

from benchmarks.kernels import cpu_attention, cpu_products
from benchmarks.options import Options
from benchmarks.report import Report

KERNELS: dict[str, Callable[[Options], Report]] = {
    "cpu_attention": cpu_attention.run,
    "cpu_products": cpu_products.run,
}
