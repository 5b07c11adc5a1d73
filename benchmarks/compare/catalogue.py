"""Comparisons by name."""

from collections.abc import Callable

from benchmarks.compare import overload, policies_real
from benchmarks.options import Options
from benchmarks.report import Report

COMPARISONS: dict[str, Callable[[Options], Report]] = {
    "overload": overload.run,
    "policies_real": policies_real.run,
}
