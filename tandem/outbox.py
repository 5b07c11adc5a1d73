"""Messages that are resent until acknowledged: a successful socket send proves nothing. Pure.

A key names what is asked (a command, a grant, a report), so that its acknowledgement, or whatever
makes it pointless, ends the resends. The first transmission also comes out of `due`: a core calls
it after every event and on every tick.
"""

import heapq
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

K = TypeVar("K", bound=Hashable)
D = TypeVar("D", bound=Hashable)

FIRST_RESEND_S = 0.5
LONGEST_RESEND_S = 2.0
GROWTH = 2.0


@dataclass(slots=True)
class _Pending(Generic[D]):
    destination: D
    message: msgspec.Struct
    ticket: int
    wait_s: float


class Outbox(Generic[K, D]):
    """Unacknowledged messages by key; destinations are whatever the caller routes by.

    Resends come after 0.5, 1, 2, 2, ... seconds and never end by themselves: only `acknowledge`,
    `drop_destination` or another `send` under the same key ends them.
    """

    def __init__(
        self, *, first_s: float = FIRST_RESEND_S, longest_s: float = LONGEST_RESEND_S
    ) -> None:
        if not 0 < first_s <= longest_s:
            raise ValueError(f"resend after {first_s} s, then at most {longest_s} s: not ordered")
        self._first_s = first_s
        self._longest_s = longest_s
        self._pending: dict[K, _Pending[D]] = {}
        self._heap: list[tuple[float, int, K]] = []  # (due, ticket, key); stale tickets are skipped
        self._num_tickets = 0
        self.num_resent = 0

    def send(self, key: K, destination: D, message: msgspec.Struct, now: float) -> None:
        """Have the message sent at once and again until acknowledged; replaces the key's last."""
        self._pending[key] = _Pending(destination, message, self._num_tickets, 0.0)
        self._schedule(key, now)

    def acknowledge(self, key: K) -> bool:
        """Stop sending; False where nothing was pending (a duplicate or late acknowledgement)."""
        return self._pending.pop(key, None) is not None

    def drop_destination(self, destination: D) -> list[K]:
        """Forget all that goes to a peer that is gone for good; returns the keys."""
        dropped = [k for k, p in self._pending.items() if p.destination == destination]
        for key in dropped:
            del self._pending[key]
        return dropped

    def destinations(self) -> set[D]:
        """Whom something waits for."""
        return {pending.destination for pending in self._pending.values()}

    def due(self, now: float) -> list[tuple[D, msgspec.Struct]]:
        """What to send now, oldest first; each is scheduled again."""
        deliveries: list[tuple[D, msgspec.Struct]] = []
        while self._heap and self._heap[0][0] <= now:
            _, ticket, key = heapq.heappop(self._heap)
            pending = self._pending.get(key)
            if pending is None or pending.ticket != ticket:
                continue
            deliveries.append((pending.destination, pending.message))
            self.num_resent += pending.wait_s > 0
            pending.wait_s = min(max(self._first_s, pending.wait_s * GROWTH), self._longest_s)
            self._schedule(key, now + pending.wait_s)
        return deliveries

    def next_due(self) -> float | None:
        """When `due` will have something; None while nothing is pending."""
        while self._heap:
            at, ticket, key = self._heap[0]
            pending = self._pending.get(key)
            if pending is not None and pending.ticket == ticket:
                return at
            heapq.heappop(self._heap)
        return None

    def __contains__(self, key: K) -> bool:
        return key in self._pending

    def __len__(self) -> int:
        return len(self._pending)

    def _schedule(self, key: K, at: float) -> None:
        pending = self._pending[key]
        pending.ticket = self._num_tickets
        self._num_tickets += 1
        heapq.heappush(self._heap, (at, pending.ticket, key))
