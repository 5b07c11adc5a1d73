"""What an owner knows of its writers: greeted, mapping, admitted. One lock, for three threads.

A writer's first word admits nothing; it may then fetch the pool's descriptor (its process is noted)
and measure. What it chooses holds for the life of its process, because the proof that it writes no
more depends on the transport: a writer that maps the pool is never believed to have stopped because
some socket was closed.
"""

import threading
from dataclasses import dataclass

MAPPED = frozenset({"shared_memory", "cuda_ipc"})
MAX_WRITERS = 4096


@dataclass(slots=True)
class _Writer:
    key: str | None
    pid: int | None = None
    transport: str | None = None


class Writers:
    """By routing identity, which no two processes share."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._writers: dict[bytes, _Writer] = {}

    def greet(self, identity: bytes, key: str | None) -> str | None:
        """It said hello, with the key of its bulk sockets; why it is turned away, if it is."""
        with self._lock:
            writer = self._writers.get(identity)
            if writer is None:
                if len(self._writers) >= MAX_WRITERS and not self._forget_one():
                    return f"{MAX_WRITERS} processes map this node's pool already"
                writer = self._writers[identity] = _Writer(key)
            return None if writer.key == key else "it came with another key before"

    def map(self, identity: bytes, pid: int) -> bool:
        """A process asks for the pool's descriptor under this identity; whether it may have it."""
        with self._lock:
            writer = self._writers.get(identity)
            if writer is None or writer.pid not in (None, pid):
                return False
            writer.pid = pid
            return True

    def choose(self, identity: bytes, transport: str) -> str | None:
        """It will use this transport from now on; why not, where it may not."""
        with self._lock:
            writer = self._writers.get(identity)
            if writer is None or (transport in MAPPED and writer.pid is None):
                return f"it chose {transport} without having fetched the pool's descriptor"
            if writer.transport not in (None, transport):
                return f"it chose {writer.transport} before, and {transport} now"
            writer.transport = transport
            return None

    def chosen(self, identity: bytes) -> str | None:
        """The transport of an admitted writer."""
        with self._lock:
            writer = self._writers.get(identity)
            return None if writer is None else writer.transport

    def gone(self, identity: bytes) -> None:
        """Its process has ended."""
        with self._lock:
            self._writers.pop(identity, None)

    def _forget_one(self) -> bool:
        """The one that greeted first among those that map nothing; it may greet again."""
        oldest = next((i for i, writer in self._writers.items() if writer.pid is None), None)
        if oldest is not None:
            del self._writers[oldest]
        return oldest is not None
