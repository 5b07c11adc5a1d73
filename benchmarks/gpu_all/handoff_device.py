"""Memory that two processes share: of one GPU through CUDA IPC, or of the host in a dry run.

The CUDA driver is called through ctypes: it is there wherever a GPU is, and its allocations are the
whole ones that IPC asks for, where torch's are parts of larger ones. Memory goes with its process:
freeing it while the other has it open is undefined.
"""

import ctypes
import mmap
import os
from pathlib import Path
from typing import Protocol

import torch

HANDLE_BYTES = 64
LAZY_PEER_ACCESS = 1


class Event(Protocol):
    """Marks a place in a stream."""

    def record(self) -> None:
        """Here, in the current stream."""


class HandoffDevice(Protocol):
    """One process's view of the device."""

    def allocate(self, num_bytes: int) -> torch.Tensor:
        """uint8 [num_bytes], exportable, zeroed."""

    def export(self) -> str:
        """The handle of what was allocated."""

    def open(self, handle: str, num_bytes: int) -> torch.Tensor:
        """The same memory in another process."""

    def event(self) -> tuple[Event, str]:
        """A new event and its handle."""

    def open_event(self, handle: str) -> object:
        """Another process's event, for `wait`."""

    def wait(self, event: object) -> None:
        """What this process begins from here on comes after the event."""

    def synchronize(self) -> None:
        """Wait for all that this process began."""


class _Handle(ctypes.Structure):
    _fields_ = (("reserved", ctypes.c_char * HANDLE_BYTES),)


class _Bytes:
    """Device memory as torch wants to be shown it."""

    def __init__(self, base: int, num_bytes: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (num_bytes,),
            "typestr": "|u1",
            "data": (base, False),
            "strides": None,
            "version": 3,
        }


class CudaDevice:
    """The first GPU, in torch's context."""

    def __init__(self) -> None:
        torch.cuda.init()
        torch.zeros(1, device="cuda")
        self._cuda = ctypes.CDLL("libcuda.so.1")
        self._base = ctypes.c_uint64()

    def allocate(self, num_bytes: int) -> torch.Tensor:
        """See `HandoffDevice`."""
        self._call("cuMemAlloc_v2", ctypes.byref(self._base), ctypes.c_size_t(num_bytes))
        tensor = torch.as_tensor(_Bytes(self._base.value, num_bytes), device="cuda")
        return tensor.zero_()

    def export(self) -> str:
        """See `HandoffDevice`."""
        handle = _Handle()
        self._call("cuIpcGetMemHandle", ctypes.byref(handle), self._base)
        return bytes(handle).hex()

    def open(self, handle: str, num_bytes: int) -> torch.Tensor:
        """See `HandoffDevice`."""
        theirs, base = _Handle.from_buffer_copy(bytes.fromhex(handle)), ctypes.c_uint64()
        flags = ctypes.c_uint(LAZY_PEER_ACCESS)
        self._call("cuIpcOpenMemHandle_v2", ctypes.byref(base), theirs, flags)
        return torch.as_tensor(_Bytes(base.value, num_bytes), device="cuda")

    def event(self) -> tuple[Event, str]:
        """See `HandoffDevice`."""
        event = torch.cuda.Event(interprocess=True)
        event.record()
        return event, bytes(event.ipc_handle()).hex()

    def open_event(self, handle: str) -> object:
        """See `HandoffDevice`."""
        return torch.cuda.Event.from_ipc_handle(torch.device("cuda", 0), bytes.fromhex(handle))

    def wait(self, event: object) -> None:
        """See `HandoffDevice`."""
        assert isinstance(event, torch.cuda.Event)
        torch.cuda.current_stream().wait_event(event)

    def synchronize(self) -> None:
        """See `HandoffDevice`."""
        torch.cuda.synchronize()

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._cuda, name)(*arguments)
        if status != 0:
            raise RuntimeError(f"{name} failed with CUDA error {status}")


class HostDevice:
    """Memory without a name, and no stream: everything has happened when it was begun."""

    def __init__(self) -> None:
        self._path = ""

    def allocate(self, num_bytes: int) -> torch.Tensor:
        """See `HandoffDevice`."""
        descriptor = os.memfd_create("gpu_all")
        os.ftruncate(descriptor, num_bytes)
        self._path = f"/proc/{os.getpid()}/fd/{descriptor}"
        return self.open(self._path, num_bytes)

    def export(self) -> str:
        """See `HandoffDevice`."""
        return self._path

    def open(self, handle: str, num_bytes: int) -> torch.Tensor:
        """See `HandoffDevice`."""
        with Path(handle).open("r+b") as file:
            return torch.frombuffer(mmap.mmap(file.fileno(), num_bytes), dtype=torch.uint8)

    def event(self) -> tuple[Event, str]:
        """See `HandoffDevice`."""
        return _Nothing(), ""

    def open_event(self, handle: str) -> object:
        """See `HandoffDevice`."""
        return handle

    def wait(self, event: object) -> None:
        """See `HandoffDevice`."""

    def synchronize(self) -> None:
        """See `HandoffDevice`."""


class _Nothing:
    def record(self) -> None:
        """See `Event`."""
