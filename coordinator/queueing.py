"""Questions that wait at the coordinator for a node with room, in the order of turn. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from coordinator.placements import RequestKey, key_of
from tandem.messages.placement import Place


@dataclass(frozen=True, slots=True)
class HeldPlace:
    """A question that has no answer yet. It must be placed by `due_at` to keep its deadline."""

    request: Place
    due_at: float
    number: int


class HeldPlaces:
    """At most `max_held` questions, one per request.

    The turn goes by priority, then to tenants below their share, then to the earliest deadline
    (EDF), then to who came first.
    """

    def __init__(self, max_held: int) -> None:
        self._max_held = max_held
        self._held: dict[RequestKey, HeldPlace] = {}
        self._last_number = 0

    def __len__(self) -> int:
        return len(self._held)

    @property
    def is_full(self) -> bool:
        """Whether it takes no more."""
        return len(self._held) >= self._max_held

    def get(self, key: RequestKey) -> HeldPlace | None:
        """The question of this request, if it waits."""
        return self._held.get(key)

    def add(self, request: Place, due_at: float) -> None:
        """It waits from now on. The caller knows that there is room, and no question of it yet."""
        self._last_number += 1
        self._held[key_of(request)] = HeldPlace(request, due_at, self._last_number)

    def remove(self, key: RequestKey) -> HeldPlace | None:
        """It was answered, or nobody wants the answer any more."""
        return self._held.pop(key, None)

    def forget_gateway(self, gateway_id: str) -> int:
        """A gateway is gone, and its questions with it; returns how many."""
        gone = [k for k, held in self._held.items() if held.request.gateway_id == gateway_id]
        for key in gone:
            del self._held[key]
        return len(gone)

    def first(self, is_entitled: Callable[[Place], bool]) -> HeldPlace | None:
        """Whose turn it is, where `is_entitled` says whose tenant is below its share."""
        return min(self._held.values(), key=lambda held: turn(held, is_entitled), default=None)

    def num_ahead(self, priority: int, due_at: float) -> int:
        """How many would be placed before one of this priority and deadline, tenants aside."""
        return sum(
            (-held.request.priority, held.due_at) <= (-priority, due_at)
            for held in self._held.values()
        )

    def overdue(self, now: float) -> list[HeldPlace]:
        """Those that can no longer keep their deadline, in the order in which they came."""
        return [held for held in self._held.values() if held.due_at < now]


def turn(held: HeldPlace, is_entitled: Callable[[Place], bool]) -> tuple[int, bool, float, int]:
    """Sorts by whose turn comes first; a higher priority goes first."""
    request = held.request
    return (-request.priority, not is_entitled(request), held.due_at, held.number)
