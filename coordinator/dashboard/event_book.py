"""What happened, in numbered lines. Pure."""

from collections import deque
from collections.abc import Iterable
from itertools import islice

from coordinator.actions import EventKind
from tandem.messages.operations import Event

MAX_EVENTS = 2000
MAX_DECISIONS = 500  # kept beside: many members must not push them out of a chart
MAX_TEXT = 1000
# Of one kind in one second: what happens to many requests at once is one event, not many.
MAX_PER_SECOND: dict[EventKind, int] = {"request": 5, "error": 20}


class EventBook:
    """The last events; numbers only grow, also over restarts where a file keeps them."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=MAX_EVENTS)
        self._new: list[Event] = []
        self._decisions: deque[Event] = deque(maxlen=MAX_DECISIONS)
        self._num_this_second: dict[EventKind, int] = {}
        self.last_number = 0

    def add(self, kind: EventKind, text: str, unix_s: float) -> Event | None:
        """Note what happened; None where too much of its kind did within a second."""
        num = self._num_this_second.get(kind, 0) + 1
        self._num_this_second[kind] = num
        if num > MAX_PER_SECOND.get(kind, MAX_EVENTS):
            return None
        return self._append(kind, text, unix_s)

    def _append(self, kind: EventKind, text: str, unix_s: float) -> Event:
        self.last_number += 1
        event = Event(number=self.last_number, unix_s=unix_s, kind=kind, text=text[:MAX_TEXT])
        self._keep(event)
        self._new.append(event)
        return event

    def _keep(self, event: Event) -> None:
        self._events.append(event)
        if event.kind == "decision":
            self._decisions.append(event)

    def tick(self, unix_s: float) -> None:
        """A second is over: say how much was left out."""
        for kind, limit in MAX_PER_SECOND.items():
            num_more = self._num_this_second.get(kind, 0) - limit
            if num_more > 0:
                self._append(kind, f"and {num_more} more of this kind in one second", unix_s)
        self._num_this_second.clear()

    def after(self, number: int) -> list[Event]:
        """Those with a higher number, oldest first."""
        num = max(0, self.last_number - number)
        return list(islice(reversed(self._events), num))[::-1]

    def decisions(self) -> tuple[Event, ...]:
        """Those that were decisions."""
        return tuple(self._decisions)

    def restore(self, events: Iterable[Event]) -> None:
        """What a file kept, oldest first."""
        for event in events:
            self._keep(event)
        if self._events:
            self.last_number = max(self.last_number, self._events[-1].number)

    def take_new(self) -> list[Event]:
        """Those that a file should have, since the last call."""
        new, self._new = self._new, []
        return new
