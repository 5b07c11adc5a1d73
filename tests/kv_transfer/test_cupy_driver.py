"""The real driver's side of errors and addresses, over a runtime that only takes notes.

What CUDA does is for `test_cuda_ipc_gpu.py`.
"""

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

from kv_transfer.cuda_driver import DeviceLost

ILLEGAL_ADDRESS, NOT_READY, INVALID_CONTEXT, OUT_OF_MEMORY = 700, 600, 201, 2


class RuntimeFailure(RuntimeError):
    """As CuPy's."""

    def __init__(self, status: int) -> None:
        super().__init__(f"cudaError {status}")
        self.status = status


class Runtime(ModuleType):
    """`cupy.cuda.runtime`: notes what is called; `errors` names the calls that fail."""

    CUDARuntimeError = RuntimeFailure
    streamNonBlocking, memcpyDefault, cudaIpcMemLazyEnablePeerAccess = 1, 4, 1

    def __init__(self) -> None:
        super().__init__("cupy.cuda.runtime")
        self.calls: list[tuple[Any, ...]] = []
        self.errors: dict[str, int] = {}
        self.answers: dict[str, Any] = {
            "getDeviceCount": 2,
            "malloc": 4096,
            "ipcGetMemHandle": b"h" * 64,
            "ipcOpenMemHandle": 8192,
            "streamCreateWithFlags": 77,
            "streamQuery": 0,
            "deviceCanAccessPeer": 1,
            "deviceGetAttribute": 0,
        }

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            self.calls.append((name, *arguments))
            if name in self.errors:
                raise RuntimeFailure(self.errors[name])
            return self.answers.get(name)

        return call


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    runtime = Runtime()
    cupy, cuda = ModuleType("cupy"), ModuleType("cupy.cuda")
    vars(cuda)["runtime"] = runtime
    for name, module in [("cupy", cupy), ("cupy.cuda", cuda), ("cupy.cuda.runtime", runtime)]:
        monkeypatch.setitem(sys.modules, name, module)
    properties = type("Properties", (), {"uuid": "abc"})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda ordinal: properties)
    return runtime


@pytest.fixture
def module(runtime: Runtime) -> Iterator[ModuleType]:
    yield importlib.import_module("kv_transfer.cupy_driver")
    del sys.modules["kv_transfer.cupy_driver"]


@pytest.fixture
def driver(module: ModuleType, runtime: Runtime) -> Any:
    driver = module.open_driver("cuda:1")
    runtime.calls.clear()
    return driver


def test_the_pool_is_an_allocation_of_its_own_and_zeroed(driver, runtime) -> None:
    assert driver.allocate((2 << 20) + 100) == 4096
    assert runtime.calls == [
        ("setDevice", 1),
        ("malloc", 4 << 20),  # whole blocks
        ("memset", 4096, 0, 4 << 20),
        ("deviceSynchronize",),
    ]


def test_too_little_memory_is_no_lost_device(driver, runtime) -> None:
    runtime.errors["malloc"] = OUT_OF_MEMORY
    with pytest.raises(ValueError, match="the GPU has no 4 MiB for KV pages"):
        driver.allocate(3 << 20)
    runtime.errors["malloc"] = ILLEGAL_ADDRESS
    with pytest.raises(DeviceLost, match="cudaError 700"):
        driver.allocate(3 << 20)


def test_its_own_handle_is_refused_before_cuda_is_asked(driver, runtime) -> None:
    handle = driver.export(4096)
    with pytest.raises(ValueError, match="its own CUDA IPC handle"):
        driver.open(handle)
    assert not [call for call in runtime.calls if call[0] == "ipcOpenMemHandle"]
    assert driver.open(b"x" * 64) == 8192


def test_a_handle_that_cannot_be_opened_is_told_from_a_lost_device(driver, runtime) -> None:
    runtime.errors["ipcOpenMemHandle"] = INVALID_CONTEXT
    with pytest.raises(ValueError, match="cannot open the owner's pool: cudaError 201"):
        driver.open(b"x" * 64)
    runtime.errors["deviceSynchronize"] = ILLEGAL_ADDRESS
    with pytest.raises(DeviceLost, match="cudaError 700"):
        driver.open(b"x" * 64)


def test_runs_are_copies_at_their_addresses(driver, runtime) -> None:
    stream = driver.stream()
    runtime.calls.clear()
    stream.copy_runs(10_000, 20_000, [(0, 3, 2), (5, 1, 1)], 100)
    assert runtime.calls == [
        ("setDevice", 1),
        ("memcpyAsync", 20_300, 10_000, 200, 4, 77),
        ("memcpyAsync", 20_100, 10_500, 100, 4, 77),
    ]


def test_a_stream_is_idle_busy_or_lost(driver, runtime) -> None:
    stream = driver.stream()
    assert stream.is_idle()
    runtime.answers["streamQuery"] = NOT_READY
    assert not stream.is_idle()
    runtime.answers["streamQuery"] = ILLEGAL_ADDRESS
    with pytest.raises(DeviceLost, match="the device is lost to this process: cudaError 700"):
        stream.is_idle()


@pytest.mark.parametrize("call", ["free", "close", "synchronize", "export", "stream"])
def test_any_other_error_is_a_lost_device(driver, runtime, call: str) -> None:
    for name in ("free", "ipcCloseMemHandle", "deviceSynchronize", "ipcGetMemHandle"):
        runtime.errors[name] = ILLEGAL_ADDRESS
    runtime.errors["streamCreateWithFlags"] = ILLEGAL_ADDRESS
    arguments = [] if call in ("synchronize", "stream") else [4096]
    with pytest.raises(DeviceLost):
        getattr(driver, call)(*arguments)


def test_devices_are_known_by_uuid(driver, runtime) -> None:
    assert driver.uuid == "GPU-abc"
    assert driver.explain_unreachable("GPU-abc") is None
    runtime.answers["deviceCanAccessPeer"] = 0
    assert driver.explain_unreachable("GPU-abc") == "GPU GPU-abc has no peer access to GPU-abc"
    assert "GPU GPU-z is not visible here" in driver.explain_unreachable("GPU-z")


def test_mps_is_seen(module, runtime) -> None:
    runtime.answers["deviceGetAttribute"] = 1
    assert module.open_driver("cuda").is_mps
    runtime.errors["deviceGetAttribute"] = 1
    assert not module.open_driver("cuda").is_mps


def test_no_gpu_and_no_such_gpu_are_refused(module, runtime) -> None:
    with pytest.raises(ValueError, match="there is no cuda:2: CuPy sees 2 GPUs"):
        module.open_driver("cuda:2")
    runtime.errors["getDeviceCount"] = 35
    with pytest.raises(ValueError, match="CuPy finds no GPU: cudaError 35"):
        module.open_driver("cuda")
