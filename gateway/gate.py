"""Who need not ask for nodes now, by what others were answered: refused before tokenising. Pure.

Refusing a request costs a gateway its tokens and the coordinator a placement; at ten times the
capacity that took the cores of what was served (two cores: goodput 37 % of its peak). A refusal for
overload therefore shuts a door, one per tenant and targets, and behind a shut door only some ask:

- for every request that is placed `ASKS_PER_PLACED` further ones, so that the coordinator is always
  asked for more than it can serve, and capacity that grows is found; the rest of an overload ends
  here;
- `PROBES_PER_S` besides, so that room is found within a quarter of a second after everything was
  full, and the next placements double what may ask;
- whoever would be easier to place than what was refused: a higher priority, a smaller prompt.

While there is overload those that ask keep the door shut; `SHUT_S` after the last refusal it is
open, whatever was told to those refused.
"""

from dataclasses import dataclass

ASKS_PER_PLACED = 2.0
PROBES_PER_S = 4.0
MAX_CREDIT = 32.0  # asks saved up, of a burst of placements
SHUT_S = 2.0
MIN_RETRY_S = 0.5
MAX_DOORS = 1024
Key = tuple[str, str | None, float | None, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What of a new request decides whether it would be refused like the last one.

    `num_bytes` is the size of its prompt; without a class or own targets it is of the default's.
    """

    tenant: str
    sla_class: str | None
    ttft_ms: float | None
    tpot_ms: float | None
    priority: int
    num_bytes: int

    @property
    def key(self) -> Key:
        """The door that it comes to."""
        return self.tenant, self.sla_class, self.ttft_ms, self.tpot_ms


@dataclass(slots=True)
class _Door:
    """Shut until then for those who are no easier to place; `credit` is how many may ask."""

    shut_until: float
    retry_at: float
    priority: int
    num_bytes: int
    credit: float
    credit_at: float


class OverloadGate:
    """See the module. Times are the caller's monotonic clock.

    `num_refused`: since the start, by SLA class; None are those that named none.
    """

    def __init__(self) -> None:
        self._doors: dict[Key, _Door] = {}
        self._asked: dict[bytes, Wish] = {}
        self.num_refused: dict[str | None, int] = {}

    def wait_s(self, wish: Wish, now: float) -> float | None:
        """After how long a refused request should try again; None: it may ask, now."""
        wait_s = self.look(wish, now)
        door = self._doors.get(wish.key)
        if wait_s is None and door is not None and _is_shut_for(door, wish, now):
            door.credit -= 1.0
        return wait_s

    def look(self, wish: Wish, now: float) -> float | None:
        """The same without the right to ask: for a look before the prompt is made into tokens."""
        door = self._doors.get(wish.key)
        if door is None or not _is_shut_for(door, wish, now):
            return None
        gained = (now - door.credit_at) * PROBES_PER_S
        door.credit, door.credit_at = min(MAX_CREDIT, door.credit + gained), now
        if door.credit >= 1.0:
            return None
        self.num_refused[wish.sla_class] = self.num_refused.get(wish.sla_class, 0) + 1
        return max(MIN_RETRY_S, door.retry_at - now)

    def asked(self, request_id: bytes, wish: Wish) -> None:
        """A request goes on to ask for nodes."""
        self._asked[request_id] = wish

    def forget(self, request_id: bytes) -> None:
        """It ended, or never asked; without effect where it was answered."""
        self._asked.pop(request_id, None)

    def placed(self, request_id: bytes, now: float) -> None:
        """It got nodes; the first answer counts, later ones are fail-overs and moves."""
        wish = self._asked.pop(request_id, None)
        door = None if wish is None else self._doors.get(wish.key)
        if door is not None:
            door.credit = min(MAX_CREDIT, door.credit + ASKS_PER_PLACED)

    def refused(self, request_id: bytes, retry_after_s: float, now: float) -> None:
        """It was refused for overload."""
        wish = self._asked.pop(request_id, None)
        if wish is None:
            return
        door = self._doors.pop(wish.key, None)
        if door is None or now >= door.shut_until:
            door = _Door(0.0, 0.0, wish.priority, wish.num_bytes, 0.0, now)
        door.shut_until = now + min(SHUT_S, retry_after_s)
        door.retry_at = now + retry_after_s
        door.priority = max(door.priority, wish.priority)
        door.num_bytes = min(door.num_bytes, wish.num_bytes)
        self._doors[wish.key] = door  # the last one is the latest shut
        if len(self._doors) > MAX_DOORS:
            del self._doors[next(iter(self._doors))]


def _is_shut_for(door: _Door, wish: Wish, now: float) -> bool:
    is_easier = wish.priority > door.priority or wish.num_bytes < door.num_bytes
    return now < door.shut_until and not is_easier
