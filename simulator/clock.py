"""Virtual time: an event heap, and the trace of what happened. Equal seeds give equal traces."""

import hashlib
import heapq
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

NUM_LAST = 50


class Violation(AssertionError):
    """An invariant does not hold."""


class Clock:
    """Runs callbacks in the order of their virtual time; equal times in the order of scheduling."""

    def __init__(self, *, is_traced: bool = False) -> None:
        self.now = 0.0
        self.num_events = 0
        self.labels: Counter[str] = Counter()
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._num_scheduled = 0
        self._hash = hashlib.blake2b(digest_size=16)
        self._last: deque[str] = deque(maxlen=NUM_LAST)
        self._is_traced = is_traced

    def after(self, delay_s: float, callback: Callable[..., None], *arguments: object) -> None:
        """Call back `delay_s` from now."""
        self._num_scheduled += 1
        event = (self.now + delay_s, self._num_scheduled, callback, arguments)
        heapq.heappush(self._heap, event)

    def step(self) -> None:
        """Run the next event. There always is one: processes tick."""
        self.now, _, callback, arguments = heapq.heappop(self._heap)
        self.num_events += 1
        callback(*arguments)

    def note(self, text: str) -> None:
        """A line of the trace."""
        line = f"{self.now:.6f} {text}"
        self._hash.update(line.encode())
        self._last.append(line)
        if self._is_traced:
            print(line)  # noqa: T201  asked for with --trace

    def reach(self, label: str) -> None:
        """A branch worth reaching was reached."""
        self.labels[label] += 1

    @property
    def last_lines(self) -> tuple[str, ...]:
        """The end of the trace."""
        return tuple(self._last)

    @property
    def trace_hash(self) -> str:
        """Equal for equal traces."""
        return self._hash.hexdigest()
