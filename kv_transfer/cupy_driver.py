"""`CudaDriver` with CuPy and torch. Loaded by name, and only where a GPU is to share its pages.

CuPy and torch use the device's one primary context, so torch computes in memory that CuPy
allocated. Streams here are non-blocking: they neither wait for the computation nor hold it up.
Errors that concern a call (too little memory, a handle that cannot be opened) are told as such; any
other error of CUDA means that the context is spent.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from cupy.cuda import runtime

from kernels.page_digest import page_digests
from kv_transfer.cuda_driver import DeviceLost, Digests, Run

MPS_ENABLED = 133  # cudaDevAttrMpsEnabled, CUDA 12.3
BLOCK_BYTES = 2 << 20  # of device memory: what cudaMalloc takes at a time
SUCCESS, OUT_OF_MEMORY, NOT_READY = 0, 2, 600  # cudaError_t


def open_driver(device: str) -> "CupyDriver":
    """The driver of "cuda" or "cuda:N". ValueError where CUDA finds no such device."""
    ordinal = torch.device(device).index or 0
    try:
        num_devices = int(runtime.getDeviceCount())
    except runtime.CUDARuntimeError as error:
        raise ValueError(f"CuPy finds no GPU: {error}") from None
    if ordinal >= num_devices:
        raise ValueError(f"there is no {device}: CuPy sees {num_devices} GPUs")
    return CupyDriver(ordinal)


class CupyDriver:
    """One device of this process; see `CudaDriver`."""

    def __init__(self, ordinal: int) -> None:
        self._ordinal = ordinal
        self._own_handles: set[bytes] = set()
        self.uuid = _uuid(ordinal)
        self.is_mps = _is_mps(ordinal)

    def explain_unreachable(self, uuid: str) -> str | None:
        """See `CudaDriver`: the device must be visible here, and peer access possible."""
        visible = [_uuid(ordinal) for ordinal in range(int(runtime.getDeviceCount()))]
        if uuid not in visible:
            return (
                f"GPU {uuid} is not visible here, only {', '.join(visible)}: give both nodes the "
                "same CUDA_VISIBLE_DEVICES, and choose with --device cuda:N"
            )
        theirs = visible.index(uuid)
        if theirs != self._ordinal and not runtime.deviceCanAccessPeer(self._ordinal, theirs):
            return f"GPU {self.uuid} has no peer access to {uuid}"
        return None

    def allocate(self, num_bytes: int) -> int:
        """A cudaMalloc of its own: the base of an allocation that nothing else shares.

        Whole blocks of 2 MiB: in what is left of one CUDA puts other allocations, and its handle
        gives those away as well.
        """
        num_bytes = -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES
        with _device(self._ordinal):
            try:
                base = int(runtime.malloc(num_bytes))
            except runtime.CUDARuntimeError as error:
                if error.status != OUT_OF_MEMORY:
                    raise
                raise ValueError(
                    f"the GPU has no {num_bytes / 2**20:.0f} MiB for KV pages: ask for fewer"
                ) from None
            runtime.memset(base, 0, num_bytes)
            runtime.deviceSynchronize()
        return base

    def free(self, base: int) -> None:
        """See `CudaDriver`."""
        with _device(self._ordinal):
            runtime.free(base)

    def export(self, base: int) -> bytes:
        """See `CudaDriver`."""
        with _device(self._ordinal):
            handle = bytes(runtime.ipcGetMemHandle(base))
        self._own_handles.add(handle)
        return handle

    def open(self, handle: bytes) -> int:
        """See `CudaDriver`; enables peer access where the memory is another device's."""
        if handle in self._own_handles:
            raise ValueError("a process cannot open its own CUDA IPC handle")
        with _device(self._ordinal):
            try:
                return int(runtime.ipcOpenMemHandle(handle, runtime.cudaIpcMemLazyEnablePeerAccess))
            except runtime.CUDARuntimeError as error:
                runtime.deviceSynchronize()  # fails where it is the device that failed
                raise ValueError(f"CUDA cannot open the owner's pool: {error}") from None

    def close(self, base: int) -> None:
        """See `CudaDriver`."""
        with _device(self._ordinal):
            runtime.ipcCloseMemHandle(base)

    def stream(self) -> "CupyStream":
        """See `CudaDriver`."""
        with _device(self._ordinal):
            stream = int(runtime.streamCreateWithFlags(runtime.streamNonBlocking))
        return CupyStream(self._ordinal, stream)

    def synchronize(self) -> None:
        """See `CudaDriver`."""
        with _device(self._ordinal):
            runtime.deviceSynchronize()


class CupyStream:
    """A stream beside that of the computation; see `CudaStream`."""

    def __init__(self, ordinal: int, stream: int) -> None:
        self._ordinal = ordinal
        self._stream = stream
        self._staged: list[torch.Tensor] = []  # until idle: what the device reads or writes

    def copy_runs(self, source: int, target: int, runs: Sequence[Run], page_bytes: int) -> None:
        """See `CudaStream`: one copy per run."""
        with _device(self._ordinal):
            for first_source, first_target, num_pages in runs:
                runtime.memcpyAsync(
                    target + first_target * page_bytes,
                    source + first_source * page_bytes,
                    num_pages * page_bytes,
                    runtime.memcpyDefault,
                    self._stream,
                )

    def digest_pages(
        self, base: int, num_pages: int, page_bytes: int, pages: Sequence[int]
    ) -> Digests:
        """See `CudaStream`: the kernel, then a copy into pinned memory; nothing waits."""
        with (
            _device(self._ordinal),
            torch.cuda.stream(torch.cuda.ExternalStream(self._stream, self._ordinal)),
        ):
            # In here: pinning takes a context on the thread's current device, GPU 0 at first.
            wanted = torch.tensor(pages, dtype=torch.int32).pin_memory()
            digests = torch.empty(len(pages), dtype=torch.int64, pin_memory=True)
            pool = torch.as_tensor(_Words(base, num_pages, page_bytes), device=self._ordinal)
            indices = wanted.to(pool.device, non_blocking=True)
            digests.copy_(page_digests(pool, indices), non_blocking=True)
        self._staged += [wanted, digests]
        return digests.numpy()

    def is_idle(self) -> bool:
        """See `CudaStream`."""
        with _device(self._ordinal):
            status = int(runtime.streamQuery(self._stream))
            if status not in (SUCCESS, NOT_READY):
                raise runtime.CUDARuntimeError(status)
        if status == SUCCESS:
            self._staged.clear()
        return status == SUCCESS

    def close(self) -> None:
        """See `CudaStream`."""
        with _device(self._ordinal):
            runtime.streamDestroy(self._stream)


class _Words:
    """A pool as torch is shown it: [pages, words] of 32 bits."""

    def __init__(self, base: int, num_pages: int, page_bytes: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (num_pages, page_bytes // 4),
            "typestr": "<i4",
            "data": (base, False),
            "strides": None,
            "version": 3,
        }


def _uuid(ordinal: int) -> str:
    # Not CuPy's: it ends at the first zero byte.
    return f"GPU-{torch.cuda.get_device_properties(ordinal).uuid}"


def _is_mps(ordinal: int) -> bool:
    try:
        return bool(runtime.deviceGetAttribute(MPS_ENABLED, ordinal))
    except runtime.CUDARuntimeError:
        return False  # a driver that does not know the question


@contextmanager
def _device(ordinal: int) -> Iterator[None]:
    """Calls on this device: threads have a current one each. DeviceLost where one fails."""
    try:
        runtime.setDevice(ordinal)
        yield
    except RuntimeError as error:  # CuPy's, torch's and Triton's errors are ones
        raise DeviceLost(f"CUDA failed, the device is lost to this process: {error}") from error
