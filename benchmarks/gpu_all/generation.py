"""Greedy tokens of the demo model on the device: token for token those of transformers there."""

from collections.abc import Iterator

from benchmarks.gpu_all.device_tests import run_tests
from benchmarks.gpu_all.setting import Setting, Table


def run(setting: Setting) -> Iterator[Table]:
    """Fast and invariant numerics, in float32."""
    needed = ("transformers", "msgspec", "numba", "hypothesis", "pytest")
    path = "tests/golden/test_gpu_generation.py"
    yield run_tests(setting, "Greedy generation beside transformers", path, needed)
