"""KV memory allocators of the field, replayed over request lengths. Pure, exact, without timing.

The memory is a number of token slots. A replay keeps the queue full: whoever is first in line is
admitted as soon as the allocator has room, every resident request gains one token per step. This
is the experiment behind PagedAttention's figures on fragmentation (Kwon et al., SOSP 2023), with
its kinds of waste:

    reserved   slots that a request holds and will fill later
    internal   slots that a request holds and never fills
    external   free slots while the first request in line does not fit
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from benchmarks.traces import Lengths


class Allocator(Protocol):
    """Slots of token memory, by request number."""

    def admit(self, request: int, num_tokens: int, num_final: int) -> bool:
        """Make room for `num_tokens` of a request that will end at `num_final`; False: none."""

    def grow(self, request: int, num_tokens: int) -> bool:
        """Room for `num_tokens` in all; False where there is none."""

    def release(self, request: int) -> None:
        """Give everything back."""

    def num_held(self, request: int) -> int:
        """Slots that the request has."""


class Contiguous:
    """One run of slots per request, first fit, for `reserve_for` tokens or for its final length.

    `reserve_for`: the model's longest sequence, as frameworks before PagedAttention had to; None
    knows every length in advance, as nobody does.
    """

    def __init__(self, num_slots: int, *, reserve_for: int | None) -> None:
        self._reserve_for = reserve_for
        self._gaps = [(0, num_slots)]  # start and size, in order
        self._runs: dict[int, tuple[int, int]] = {}

    def admit(self, request: int, num_tokens: int, num_final: int) -> bool:
        """See `Allocator`."""
        size = self._reserve_for or num_final
        for index, (start, room) in enumerate(self._gaps):
            if room >= size:
                self._runs[request] = (start, size)
                self._gaps[index : index + 1] = [(start + size, room - size)] * (room > size)
                return True
        return False

    def grow(self, request: int, num_tokens: int) -> bool:
        """See `Allocator`: the run was made for all of it."""
        return num_tokens <= self._runs[request][1]

    def release(self, request: int) -> None:
        """See `Allocator`; gaps that touch become one."""
        merged: list[tuple[int, int]] = []
        for start, size in sorted([*self._gaps, self._runs.pop(request)]):
            if merged and sum(merged[-1]) == start:
                merged[-1] = (merged[-1][0], merged[-1][1] + size)
            else:
                merged.append((start, size))
        self._gaps = merged

    def num_held(self, request: int) -> int:
        """See `Allocator`."""
        return self._runs[request][1]


class Buddy:
    """Runs of a power of two, split and merged in pairs; lengths known in advance.

    As the "Orca (Pow2)" baseline of PagedAttention's paper; `num_slots` is a power of two.
    """

    def __init__(self, num_slots: int) -> None:
        if num_slots & (num_slots - 1):
            raise ValueError(f"a buddy allocator has a power of two of slots, not {num_slots}")
        self._free: dict[int, set[int]] = {num_slots: {0}}
        self._num_slots = num_slots
        self._runs: dict[int, tuple[int, int]] = {}

    def admit(self, request: int, num_tokens: int, num_final: int) -> bool:
        """See `Allocator`."""
        wanted = 1 << max(0, num_final - 1).bit_length()
        sizes = [size for size, starts in self._free.items() if starts and size >= wanted]
        if not sizes:
            return False
        size = min(sizes)
        start = min(self._free[size])
        self._free[size].discard(start)
        while size > wanted:
            size //= 2
            self._free.setdefault(size, set()).add(start + size)
        self._runs[request] = (start, size)
        return True

    def grow(self, request: int, num_tokens: int) -> bool:
        """See `Allocator`."""
        return num_tokens <= self._runs[request][1]

    def release(self, request: int) -> None:
        """See `Allocator`; a run and its free buddy become one."""
        start, size = self._runs.pop(request)
        while size < self._num_slots and (start ^ size) in self._free.get(size, ()):
            self._free[size].discard(start ^ size)
            start, size = min(start, start ^ size), size * 2
        self._free.setdefault(size, set()).add(start)

    def num_held(self, request: int) -> int:
        """See `Allocator`."""
        return self._runs[request][1]


class Paged:
    """Pages of `page_size` slots anywhere; a request has as many as its tokens need now.

    With `is_promised` a request is admitted only where its final length is sure of pages too, so
    that it never has to be preempted.
    """

    def __init__(self, num_slots: int, page_size: int, *, is_promised: bool = False) -> None:
        self._page_size = page_size
        self._num_free = num_slots // page_size
        self._is_promised = is_promised
        self._pages: dict[int, int] = {}
        self._promises: dict[int, int] = {}

    def admit(self, request: int, num_tokens: int, num_final: int) -> bool:
        """See `Allocator`."""
        num_pages = self._num_pages_for(num_tokens)
        num_claimed = self._num_pages_for(num_final) if self._is_promised else num_pages
        if num_claimed > self._num_free:
            return False
        self._num_free -= num_claimed
        self._pages[request] = num_pages
        self._promises[request] = num_claimed - num_pages
        return True

    def grow(self, request: int, num_tokens: int) -> bool:
        """See `Allocator`."""
        num_more = self._num_pages_for(num_tokens) - self._pages[request]
        num_promised = min(num_more, self._promises[request])
        if num_more - num_promised > self._num_free:
            return False
        self._promises[request] -= num_promised
        self._num_free -= num_more - num_promised
        self._pages[request] += num_more
        return True

    def release(self, request: int) -> None:
        """See `Allocator`."""
        self._num_free += self._pages.pop(request) + self._promises.pop(request)

    def num_held(self, request: int) -> int:
        """See `Allocator`; promised pages are held too: nobody else may have them."""
        return (self._pages[request] + self._promises[request]) * self._page_size

    def _num_pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self._page_size)


@dataclass(frozen=True, slots=True)
class Usage:
    """Means over the steps of a replay: shares of the memory, and requests at once.

    `num_preempted` requests gave their memory back before they had ended, and ran again.
    """

    useful: float
    reserved: float
    internal: float
    external: float
    num_running: float
    num_steps: int
    num_preempted: int

    @property
    def useful_of_held(self) -> float:
        """Share of the slots in somebody's hands that hold a token."""
        held = self.useful + self.reserved + self.internal
        return self.useful / held if held else 0.0


class Replay:
    """A queue that is never empty before its end, over one allocator."""

    def __init__(self, allocator: Allocator, requests: Sequence[Lengths], num_slots: int) -> None:
        self._allocator = allocator
        self._requests = requests
        self._num_slots = num_slots
        self._queue = deque(range(len(requests)))
        self._lengths: dict[int, int] = {}  # tokens of those that run, in order of admission
        self._progress: dict[int, int] = {}  # tokens of those that were preempted
        self._sums = [0.0] * 5
        self._num_steps = 0
        self._num_preempted = 0

    def run(self) -> Usage:
        """Until the queue is empty: the emptying memory after it says nothing."""
        while self._queue:
            self._admit()
            if not self._lengths:
                first = self._requests[self._queue[0]]
                raise ValueError(f"{first} never fits in {self._num_slots} slots: leave it out")
            if self._queue:
                self._count()
            self._step()
        steps = max(1, self._num_steps)
        useful, reserved, internal, external, running = (total / steps for total in self._sums)
        return Usage(
            useful, reserved, internal, external, running, self._num_steps, self._num_preempted
        )

    def _admit(self) -> None:
        while self._queue:
            number = self._queue[0]
            request = self._requests[number]
            num_tokens = self._progress.get(number, request.num_prompt)
            if not self._allocator.admit(number, num_tokens, request.num_final):
                return
            self._queue.popleft()
            self._lengths[number] = num_tokens

    def _count(self) -> None:
        useful = reserved = internal = 0
        for number, num_tokens in self._lengths.items():
            held = self._allocator.num_held(number)
            num_final = self._requests[number].num_final
            useful += num_tokens
            reserved += min(held, num_final) - num_tokens
            internal += max(0, held - num_final)
        external = self._num_slots - useful - reserved - internal
        values = (useful, reserved, internal, external)
        for index, value in enumerate(values):
            self._sums[index] += value / self._num_slots
        self._sums[4] += len(self._lengths)
        self._num_steps += 1

    def _step(self) -> None:
        for number in list(self._lengths):
            if number not in self._lengths:  # preempted in this step
                continue
            num_tokens = self._lengths[number] + 1
            if num_tokens > self._requests[number].num_final:
                self._allocator.release(number)
                del self._lengths[number]
                continue
            while number in self._lengths and not self._allocator.grow(number, num_tokens):
                self._preempt_last()
            if number in self._lengths:
                self._lengths[number] = num_tokens

    def _preempt_last(self) -> None:
        """As vLLM does: who was admitted last gives way and is first in line again."""
        number = next(reversed(self._lengths))
        if len(self._lengths) == 1:
            raise ValueError(f"{self._requests[number]} does not fit alone: leave it out")
        self._allocator.release(number)
        self._progress[number] = self._lengths.pop(number)
        self._queue.appendleft(number)
        self._num_preempted += 1
