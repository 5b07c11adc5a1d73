"""Running requests move to other decode nodes: a new attempt takes over where one is placed.

They leave nodes that drain or that take no new sequences, and go where the coordinator or their
node wishes one of them away. The new attempt's prefill node is the one left, which has the pages.
Until the coordinator has placed it the old attempt goes on; refused, it stays where it is, and
where its node leaves, it asks again. Pure.
"""

from gateway.attempt import Attempt, Move
from gateway.attempts import Attempts
from gateway.live import LiveRequests
from gateway.request import LiveRequest
from tandem.messages.placement import Placed
from tandem.states import RequestState

MAX_MOVING = 4  # a node that drains must go on serving those that wait
ASK_AGAIN_S = 3.0
WISH_AGAIN_S = 10.0  # between two moves of one request that no node's leaving asks for


class Moves:
    """See the module. A move is in flight from its question until the new decode node's word."""

    def __init__(self, live: LiveRequests, attempts: Attempts) -> None:
        self._live = live
        self._attempts = attempts
        self._moving: set[bytes] = set()

    def tick(self, now: float) -> None:
        """Give up moves that lost their reason, and begin others."""
        requests = self._live.by_id
        self._moving = {k for k in self._moving if k in requests and _is_moving(requests[k])}
        for key in list(self._moving):
            move = requests[key].move
            if move is None or move.is_wished:
                continue
            if move.leaving.node_id not in self._live.leaving:
                self._stay(requests[key], now)
        if not self._live.leaving:
            return
        for request in requests.values():
            if self._is_full:
                return
            attempt = request.attempt
            if attempt is not None and attempt.decode.node_id in self._live.leaving:
                self._begin(request, attempt, now)

    @property
    def _is_full(self) -> bool:
        return len(self._moving) >= MAX_MOVING

    def wish(self, request_id: bytes, number: int, now: float) -> bool:
        """Begin to move a request that is still in this attempt; False where it stays.

        Like any move it is in flight until the new decode node's word, and few are at a time.
        """
        request = self._live.by_id.get(request_id)
        attempt = None if request is None else request.attempt
        if request is None or attempt is None or attempt.number != number:
            self._live.num_dropped += 1
            return False
        if self._is_full:
            return False
        return self._begin(request, attempt, now, is_wished=True)

    def _begin(
        self, request: LiveRequest, attempt: Attempt, now: float, *, is_wished: bool = False
    ) -> bool:
        is_free = request.move is None and attempt.ending is None and now >= request.move_again_at
        if request.state is not RequestState.DECODING or not is_free:
            return False
        request.move = Move(request.next_number(), attempt.decode, is_wished)
        if is_wished:
            request.move_again_at = now + WISH_AGAIN_S
        self._moving.add(request.request_id)
        self._attempts.ask(request, now, request.move)
        return True

    def placed(self, request: LiveRequest, move: Move, placed: Placed, now: float) -> None:
        """The new attempt takes the old one's place, whose later tokens are void.

        Nodes end an attempt when its successor arrives; a node that gets none is told.
        """
        old = request.attempt
        assert old is not None, "an attempt that is over takes its move with it"
        nodes = [placed.decode] if placed.prefill is None else [placed.prefill, placed.decode]
        is_nowhere = placed.decode.node_id == move.leaving.node_id
        if is_nowhere or any(self._live.demands.is_down(node) for node in nodes):
            self._stay(request, now)
            return
        is_left = old.decode.node_id not in {node.node_id for node in nodes}
        left = [old.decode] if is_left else []
        self._live.demands.stop(request.request_id, old, left, now)
        self._attempts.start(request, placed, now)

    def refused(self, request: LiveRequest, now: float) -> None:
        """There is no place for it now, whatever the reason: it runs where it is."""
        self._stay(request, now)

    def _stay(self, request: LiveRequest, now: float) -> None:
        assert request.move is not None, "only what moves can stay"
        wait_s = WISH_AGAIN_S if request.move.is_wished else ASK_AGAIN_S
        self._live.demands.drop_question(request.request_id)
        request.move = None
        request.move_again_at = now + wait_s


def _is_moving(request: LiveRequest) -> bool:
    return request.move is not None or (request.attempt is not None and request.attempt.is_move)
