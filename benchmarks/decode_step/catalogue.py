"""Step benchmarks by name."""

from collections.abc import Callable

from benchmarks.decode_step import cpu
from benchmarks.options import Options
from benchmarks.report import Report

STEPS: dict[str, Callable[[Options], Report]] = {"cpu": cpu.run}
