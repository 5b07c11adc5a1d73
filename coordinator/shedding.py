"""Who is shed under overload, and after how long it should try again. Pure."""

from collections import deque
from dataclasses import dataclass

from coordinator.actions import TurnedAway
from tandem.messages.placement import GatewayHello

WINDOW_S = 10.0
BUCKET_S = 1.0
MIN_RETRY_S = 0.5
MAX_RETRY_S = 30.0
UNKNOWN_RETRY_S = 5.0  # nothing ended lately, so there is no rate to go by


@dataclass(slots=True)
class _Bucket:
    begins_at: float
    num_ended: int = 0
    num_shed: int = 0


def newly_turned_away(before: GatewayHello, now: GatewayHello) -> list[TurnedAway]:
    """What a gateway refused by itself between two hellos: it tells sums since its start."""
    told = {each.sla_class: each.num_requests for each in before.turned_away}
    news = {e.sla_class: e.num_requests - told.get(e.sla_class, 0) for e in now.turned_away}
    return [TurnedAway(name, num) for name, num in news.items() if num > 0]


class RecentFlow:
    """Counts of the last ten seconds: requests that ended, and placements that were shed."""

    def __init__(self) -> None:
        self._buckets: deque[_Bucket] = deque(maxlen=round(WINDOW_S / BUCKET_S))

    def note_ended(self, now: float) -> None:
        """A request that was live has ended: somebody else fits."""
        self._bucket(now).num_ended += 1

    def note_shed(self, now: float) -> None:
        """A placement was refused for overload."""
        self._bucket(now).num_shed += 1

    def _bucket(self, now: float) -> _Bucket:
        if not self._buckets or now - self._buckets[-1].begins_at >= BUCKET_S:
            self._buckets.append(_Bucket(now))
        return self._buckets[-1]

    def retry_after_s(self, now: float) -> float:
        """When there should be room for all who were shed lately, at the pace of recent endings.

        Those shed in the window all come back; this is when the last of them is served.
        """
        num_shed = sum(b.num_shed for b in self._recent(now))
        estimate_s = self.wait_s(max(1, num_shed), now)
        if estimate_s is None:
            return UNKNOWN_RETRY_S
        return min(max(estimate_s, MIN_RETRY_S), MAX_RETRY_S)

    def wait_s(self, num_requests: int, now: float) -> float | None:
        """Until there was room for so many, at the pace of recent endings: each makes room for one.

        None where nothing ended lately.
        """
        recent = self._recent(now)
        num_ended = sum(b.num_ended for b in recent)
        if num_ended == 0:
            return None
        span_s = max(BUCKET_S, now - recent[0].begins_at)
        return num_requests * span_s / num_ended

    def _recent(self, now: float) -> list[_Bucket]:
        return [b for b in self._buckets if now - b.begins_at < WINDOW_S]


class TenantShares:
    """Live requests of every tenant that has some, against its weight."""

    def __init__(self) -> None:
        self._num_live: dict[str, int] = {}
        self._weights: dict[str, float] = {}
        self._num_all = 0

    def add(self, tenant: str, weight: float) -> None:
        """A request of the tenant was placed; its latest weight counts."""
        self._num_live[tenant] = self._num_live.get(tenant, 0) + 1
        self._weights[tenant] = weight
        self._num_all += 1

    def remove(self, tenant: str) -> None:
        """A request of the tenant is over; one without requests is forgotten."""
        self._num_all -= 1
        self._num_live[tenant] -= 1
        if self._num_live[tenant] == 0:
            del self._num_live[tenant], self._weights[tenant]

    def is_below(self, tenant: str, weight: float) -> bool:
        """Whether the tenant has less than its share of the live requests.

        Shares are divided among tenants with live requests and this one: who is alone has it all.
        """
        return self._excess(tenant, weight) < 0

    def is_above(self, tenant: str, weight: float) -> bool:
        """Whether the tenant has more than its share; who is alone has not."""
        return self._excess(tenant, weight) > 0

    def _excess(self, tenant: str, weight: float) -> float:
        others = sum(w for name, w in self._weights.items() if name != tenant)
        num_live = self._num_live.get(tenant, 0)
        return num_live * (others + weight) - weight * self._num_all
