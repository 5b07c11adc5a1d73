"""Calls that come again under their `Idempotency-Key` get the answer of the first. Pure.

A key belongs to its caller and to one body. Entries are kept for a minute after the first call, and
while that one runs; the oldest finished ones go first where they are too many or too large.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from gateway.http.errors import ApiError

KEPT_S = 60.0
MAX_KEY_CHARS = 255
MAX_ENTRIES = 4096
MAX_BYTES = 64 << 20
T = TypeVar("T")


@dataclass(slots=True)
class Entry(Generic[T]):
    """`running` is whatever stands for the first call and its answer."""

    digest: bytes
    entered: float
    running: T
    num_bytes: int = 0
    is_finished: bool = False


class RepeatedCalls(Generic[T]):
    """See the module; `now` in seconds, of any clock that only grows."""

    def __init__(self, *, max_entries: int = MAX_ENTRIES, max_bytes: int = MAX_BYTES) -> None:
        self._entries: dict[tuple[str | None, str], Entry[T]] = {}
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._num_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, caller: str | None, key: str, digest: bytes, now: float) -> T | None:
        """The first call's `running`; None: this is the first.

        Raises ApiError for a key that is too long, or came with another body. (Not with 409, which
        OpenAI's clients repeat by themselves.)
        """
        if not 1 <= len(key) <= MAX_KEY_CHARS:
            text = f"Idempotency-Key has {len(key)} characters, but must have 1 to {MAX_KEY_CHARS}"
            raise ApiError(400, text)
        self._forget_old(now)
        entry = self._entries.get((caller, key))
        if entry is None:
            return None
        if entry.digest != digest:
            text = "this Idempotency-Key was used with another body: draw a new key for each call"
            raise ApiError(400, text, code="idempotency_key_reused")
        return entry.running

    def enter(self, caller: str | None, key: str, digest: bytes, running: T, now: float) -> None:
        """The first call runs. Without room it is not remembered."""
        if len(self._entries) >= self._max_entries:
            self._drop_oldest_finished()
        if len(self._entries) < self._max_entries:
            self._entries[caller, key] = Entry(digest, now, running)

    def finish(self, caller: str | None, key: str, num_bytes: int) -> None:
        """The first call was answered with so many bytes."""
        entry = self._entries.get((caller, key))
        if entry is None or entry.is_finished:
            return
        entry.is_finished, entry.num_bytes = True, num_bytes
        self._num_bytes += num_bytes
        while self._num_bytes > self._max_bytes:
            self._drop_oldest_finished()

    def forget(self, caller: str | None, key: str) -> None:
        """The first call failed, or nobody waits for it: the next one is a first again."""
        entry = self._entries.pop((caller, key), None)
        if entry is not None:
            self._num_bytes -= entry.num_bytes

    def _finished(self) -> Iterator[tuple[str | None, str]]:
        return (name for name, entry in self._entries.items() if entry.is_finished)

    def _drop_oldest_finished(self) -> None:
        oldest = next(self._finished(), None)
        if oldest is not None:
            self.forget(*oldest)

    def _forget_old(self, now: float) -> None:
        """Entries are in the order of their times."""
        old = []
        for name, entry in self._entries.items():
            if now - entry.entered < KEPT_S:
                break
            if entry.is_finished:
                old.append(name)
        for name in old:
            self.forget(*name)
