"""When an unanswered question is asked again, and when it is given up. Pure; time in ticks."""

from collections.abc import Iterator
from dataclasses import dataclass

MAX_PER_TICK = 200  # a thousand questions that were dropped at once must not come back at once


@dataclass(slots=True)
class _Waiting:
    num_ticks: int = 0
    due_at: int = 0
    pause: int = 0
    has_backed_off: bool = False  # since it was asked last


class Resends:
    """Asks by label after `first` ticks, twice as many, and so on; gives up after `limit`.

    Ticks are counted, not time: the loop that answers would come by may have been blocked.
    """

    def __init__(self, *, first: int, limit: int) -> None:
        self._first = first
        self._limit = limit
        self._waiting: dict[str, _Waiting] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, label: str) -> None:
        """It was asked just now."""
        self._waiting[label] = _Waiting(due_at=self._first, pause=self._first)

    def forget(self, label: str) -> None:
        """It was answered, or nobody waits any more."""
        self._waiting.pop(label, None)

    def back_off(self) -> None:
        """The other side drops messages: wait a whole pause more, once before each repetition."""
        for each in self._waiting.values():
            if not each.has_backed_off:
                each.has_backed_off = True
                each.due_at = max(each.due_at, each.num_ticks + each.pause)

    def overdue(self) -> list[str]:
        """Labels to give up."""
        return [label for label, each in self._waiting.items() if each.num_ticks >= self._limit]

    def tick(self) -> Iterator[str]:
        """Time passes; gives the labels to ask again now, the longest waiting first."""
        num_asked = 0
        for label, each in self._waiting.items():
            each.num_ticks += 1
            if each.num_ticks < each.due_at or num_asked >= MAX_PER_TICK:
                continue
            num_asked += 1
            each.pause *= 2
            each.due_at = each.num_ticks + each.pause
            each.has_backed_off = False
            yield label
