"""Attempts after failures that were no node's death take turns: no storm of retries. Pure."""

from collections.abc import Mapping

from gateway.request import LiveRequest
from tandem.states import RequestState

LEAST_IN_FLIGHT = 3
SHARE_IN_FLIGHT = 0.2


class RetryTurns:
    """At most max(3, 20 % of the live requests) retries on their way to decode; the rest wait."""

    def __init__(self) -> None:
        self._in_flight: set[bytes] = set()
        self._waiting: dict[bytes, None] = {}  # in order

    def wait(self, request: LiveRequest) -> None:
        """A request wants to be placed again."""
        self._in_flight.discard(request.request_id)
        self._waiting[request.request_id] = None

    def next(self, live: Mapping[bytes, LiveRequest]) -> list[LiveRequest]:
        """Those whose turn has come."""
        if not self._waiting:
            return []
        self._in_flight = {key for key in self._in_flight if _is_on_its_way(live.get(key))}
        most = max(LEAST_IN_FLIGHT, int(SHARE_IN_FLIGHT * len(live)))
        turns: list[LiveRequest] = []
        while self._waiting and len(self._in_flight) < most:
            key = next(iter(self._waiting))
            del self._waiting[key]
            if key in live:
                self._in_flight.add(key)
                turns.append(live[key])
        return turns


def _is_on_its_way(request: LiveRequest | None) -> bool:
    return request is not None and request.state is not RequestState.DECODING
