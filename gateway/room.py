"""How much is in flight, and who may add to it: limits, fair shares, when to try again. Pure."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from gateway.admission import Rejected

CONTENDED = 0.5  # from this part of a limit on, each tenant keeps to its share
ACTIVE_S = 10.0
WINDOW_S = 10.0
UNKNOWN_RETRY_S = 1.0  # nothing has ended lately
MIN_RETRY_S, MAX_RETRY_S = 0.1, 30.0


class EndRate:
    """When a place will be free, from how many were freed lately.

    Each one who is turned away gets the next place in turn, so that they do not all come back at
    once.
    """

    def __init__(self) -> None:
        self._ends: deque[float] = deque()
        self._next_place = 0.0

    def note_end(self, now: float) -> None:
        """A request ended."""
        self._ends.append(now)
        self._forget(now)

    def retry_after_s(self, now: float) -> float:
        """Seconds until one who is turned away now may find a place."""
        self._forget(now)
        if not self._ends:
            return UNKNOWN_RETRY_S
        interval_s = max(now - self._ends[0], 1.0) / len(self._ends)
        self._next_place = max(self._next_place, now) + interval_s
        # Those who do not come back must not push the others out for ever.
        self._next_place = min(self._next_place, now + MAX_RETRY_S)
        return min(max(self._next_place - now, MIN_RETRY_S), MAX_RETRY_S)

    def _forget(self, now: float) -> None:
        while self._ends and self._ends[0] < now - WINDOW_S:
            self._ends.popleft()


@dataclass(frozen=True, slots=True)
class _Held:
    tenant: str
    num_bytes: int


@dataclass(slots=True)
class _Use:
    """What a tenant has in flight, and when it last asked."""

    num_live: int = 0
    num_bytes: int = 0
    asked_at: float = float("-inf")


class Room:
    """Requests from the first byte taken to the last said, by tenant. Only new ones are refused."""

    def __init__(self, *, max_live: int, max_bytes: int, weight: Callable[[str], float]) -> None:
        self._max_live = max_live
        self._max_bytes = max_bytes
        self._weight = weight
        self._held: dict[bytes, _Held] = {}
        self._uses: dict[str, _Use] = {}
        self._rate = EndRate()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._held)

    def num_live(self, tenant: str) -> int:
        """Requests that a tenant has in flight."""
        return self._uses[tenant].num_live if tenant in self._uses else 0

    def check(self, tenant: str, num_bytes: int, max_live: int | None, now: float) -> None:
        """Raise Rejected where a request may not come in now; `max_live` is its tenant's limit."""
        self._uses.setdefault(tenant, _Use()).asked_at = now
        self._check_limits(num_bytes, now)
        use = self._uses[tenant]
        if max_live is not None and use.num_live >= max_live:
            self._refuse(f"tenant {tenant} has {use.num_live} requests in flight and may have "
                         f"{max_live}", now)  # fmt: skip
        share = self._share(tenant, now)
        for what, held, more, total, limit in (
            ("requests", use.num_live, 1, len(self._held), self._max_live),
            ("bytes of prompts", use.num_bytes, num_bytes, self.num_bytes, self._max_bytes),
        ):
            is_contended = total + more > CONTENDED * limit
            if is_contended and held > 0 and held + more > share * limit:
                text = (
                    f"tenant {tenant} has {held} {what} in flight, and its share of {limit} among "
                    f"the tenants that are active now is {int(share * limit)}"
                )
                self._refuse(text, now)

    def _check_limits(self, num_bytes: int, now: float) -> None:
        if len(self._held) >= self._max_live:
            self._refuse(
                f"{len(self._held)} requests are in flight and this gateway takes "
                f"{self._max_live} (--max-live-requests): try again, or start another",
                now,
            )
        if self.num_bytes + num_bytes > self._max_bytes:
            self._refuse(
                f"prompts in flight take {self.num_bytes >> 20} MiB and this gateway holds "
                f"{self._max_bytes >> 20} (--max-prompt-mib): try again, or start another",
                now,
            )

    def _refuse(self, text: str, now: float) -> None:
        raise Rejected("overloaded", text, self._rate.retry_after_s(now))

    def _share(self, tenant: str, now: float) -> float:
        """A tenant's weight among those that asked lately."""
        active = [name for name, use in self._uses.items() if use.asked_at >= now - ACTIVE_S]
        return self._weight(tenant) / sum(self._weight(name) for name in active)

    def take(self, request_id: bytes, tenant: str, num_bytes: int) -> None:
        """A request comes in."""
        self._held[request_id] = _Held(tenant, num_bytes)
        use = self._uses.setdefault(tenant, _Use())
        use.num_live += 1
        use.num_bytes += num_bytes
        self.num_bytes += num_bytes

    def resize(self, request_id: bytes, num_bytes: int) -> None:
        """What it takes is known better now."""
        held = self._held.get(request_id)
        if held is not None:
            more = num_bytes - held.num_bytes
            self._held[request_id] = _Held(held.tenant, num_bytes)
            self._uses[held.tenant].num_bytes += more
            self.num_bytes += more

    def release(self, request_id: bytes, now: float, *, has_run: bool) -> None:
        """It is gone; `has_run`: it was served, so others may expect places at that rate."""
        held = self._held.pop(request_id, None)
        if held is None:
            return
        use = self._uses[held.tenant]
        use.num_live -= 1
        use.num_bytes -= held.num_bytes
        self.num_bytes -= held.num_bytes
        if has_run:
            self._rate.note_end(now)
        if not use.num_live and use.asked_at < now - ACTIVE_S:
            del self._uses[held.tenant]
