"""Binary message fields that travel as ZeroMQ frames of their own, beside the MessagePack frame.

A struct field of one of these types holds, on the wire, the index of its frame.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray


class TokenIds:
    """Token ids (or page indices): int32, little-endian on the wire; read-only."""

    __slots__ = ("array",)

    def __init__(self, ids: Iterable[int] | NDArray[np.integer[Any]] = ()) -> None:
        if isinstance(ids, np.ndarray) and ids.dtype != np.int32:
            ids = ids.tolist()  # numpy would wrap what does not fit; a list raises OverflowError
        array = np.array(ids if isinstance(ids, np.ndarray) else list(ids), dtype="<i4")
        array.setflags(write=False)
        self.array: NDArray[np.int32] = array

    @classmethod
    def from_frame(cls, frame: bytes) -> "TokenIds":
        """Read a frame. Raises ValueError where its size is no multiple of four."""
        if len(frame) % 4:
            raise ValueError(f"a token id frame has {len(frame)} bytes, not a multiple of 4")
        ids = cls.__new__(cls)
        ids.array = np.frombuffer(frame, dtype="<i4")
        return ids

    def to_frame(self) -> bytes:
        """The bytes on the wire."""
        return self.array.tobytes()

    def __len__(self) -> int:
        return len(self.array)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenIds) and np.array_equal(self.array, other.array)

    def __hash__(self) -> int:
        return hash(self.array.tobytes())

    def __repr__(self) -> str:
        return f"TokenIds({self.array[:8].tolist()}{'...' if len(self) > 8 else ''}, n={len(self)})"


class Blob:
    """Bytes: UTF-8 text of a prompt, or concatenated page hashes."""

    __slots__ = ("data",)

    def __init__(self, data: bytes = b"") -> None:
        self.data = data

    @classmethod
    def from_frame(cls, frame: bytes) -> "Blob":
        """Wrap a frame."""
        return cls(frame)

    def to_frame(self) -> bytes:
        """The bytes on the wire."""
        return self.data

    def __len__(self) -> int:
        return len(self.data)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Blob) and self.data == other.data

    def __hash__(self) -> int:
        return hash(self.data)

    def __repr__(self) -> str:
        return f"Blob({len(self.data)} bytes)"
