"""kv_transfer's own tests of CUDA IPC between processes: rates, deaths, refusals."""

from collections.abc import Iterator

from benchmarks.gpu_all.device_tests import run_tests
from benchmarks.gpu_all.setting import Setting, Table


def run(setting: Setting) -> Iterator[Table]:
    """Where its packages are missing, the part `handoff` shows what CUDA itself does."""
    needed = ("cupy", "msgpack", "msgspec", "zmq", "xxhash", "hypothesis", "pytest")
    path = "tests/kv_transfer/test_cuda_ipc_gpu.py"
    yield run_tests(setting, "kv_transfer over CUDA IPC", path, needed)
