"""Claims by name."""

from collections.abc import Callable

from benchmarks.claims import paged_allocators
from benchmarks.options import Options
from benchmarks.report import Report

CLAIMS: dict[str, Callable[[Options], Report]] = {
    "paged_allocators": paged_allocators.run,
}
