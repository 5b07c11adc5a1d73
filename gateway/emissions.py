"""Tokens and endings from nodes: what belongs to current attempts is taken, all is answered. Pure.

Nodes keep and resend what is not acknowledged, and forget what is.
"""

from gateway.attempt import Attempt, Failure
from gateway.attempts import Attempts
from gateway.live import LiveRequests
from gateway.request import LiveRequest
from gateway.token_stream import Divergence
from tandem.messages.common import NodeRef
from tandem.messages.serving import Emission, EmissionAck, Ending, TokenDelta, TokensTaken
from tandem.states import RequestState


class Emissions:
    """See the module."""

    def __init__(self, live: LiveRequests, attempts: Attempts) -> None:
        self._live = live
        self._attempts = attempts

    def current(
        self, node: NodeRef, request_id: bytes, number: int
    ) -> tuple[LiveRequest, Attempt] | None:
        """The live request and its attempt, where that is the current one and `node` serves it."""
        request = self._live.by_id.get(request_id)
        attempt = None if request is None else request.attempt
        if request is None or attempt is None or attempt.number != number:
            return None
        return (request, attempt) if attempt.has_node(node) else None

    def take(self, node: NodeRef, emission: Emission, now: float) -> EmissionAck:
        """Take what is wanted; the answer says what the node may forget."""
        if self._live.demands.is_past(emission.node_id, emission.epoch):
            return self._drop(node, emission)
        for request_id, number, report in emission.prefills:
            if (found := self.current(node, request_id, number)) is not None:
                found[0].note_prefill(found[1], report)
        taken: list[TokensTaken] = []
        ended: list[tuple[bytes, int]] = []
        for delta in emission.deltas:
            if not self._delta(node, delta, now, taken):
                ended.append((delta.request_id, delta.attempt))
        for ending in emission.endings:
            self._ending(node, ending, now)
            ended.append((ending.request_id, ending.attempt))
        return EmissionAck(taken=tuple(taken), ended=tuple(ended))

    def _drop(self, node: NodeRef, emission: Emission) -> EmissionAck:
        """The node's epoch is over: it may forget all but attempts that began under a later one.

        Those come again when it has heard of its new epoch.
        """
        self._live.num_dropped += 1
        taken: list[TokensTaken] = []
        ended: list[tuple[bytes, int]] = []
        for delta in emission.deltas:
            key = (delta.request_id, delta.attempt)
            found = self.current(node, *key)
            has = delta.start + len(delta.ids) if found is None else found[0].stream.next_index
            taken.append(TokensTaken(request_id=key[0], attempt=key[1], next_index=has))
            if found is None:
                ended.append(key)
        for ending in emission.endings:
            key = (ending.request_id, ending.attempt)
            if self.current(node, *key) is None:
                ended.append(key)
        return EmissionAck(taken=tuple(taken), ended=tuple(ended))

    def _delta(
        self, node: NodeRef, delta: TokenDelta, now: float, answers: list[TokensTaken]
    ) -> bool:
        """Take tokens, and answer below which index the node may forget the attempt's.

        False where the attempt is over, or was before.
        """
        request_id, number = delta.request_id, delta.attempt
        next_index, goes_on = delta.start + len(delta.ids), False
        found = self.current(node, request_id, number)
        if found is None:
            self._live.num_dropped += 1
        else:
            request, attempt = found
            self._take(request, attempt, node, delta, now)
            goes_on = request.attempt is attempt and self._live.by_id.get(request_id) is request
            if goes_on:
                next_index = request.stream.next_index
        answers.append(TokensTaken(request_id=request_id, attempt=number, next_index=next_index))
        return goes_on

    def _take(
        self, request: LiveRequest, attempt: Attempt, node: NodeRef, delta: TokenDelta, now: float
    ) -> None:
        try:
            new = request.stream.offer(delta.start, delta.ids, delta.logprobs)
        except Divergence as error:
            failure = Failure("internal", f"{node.node_id}: {error}", (node.node_id,))
            self._attempts.fail(request, failure, now)
            return
        if attempt.is_decoder(node):
            self._attempts.carried_on(request, attempt, now)
        elif request.state is not RequestState.DECODING:
            request.enter(RequestState.TRANSFERRING)
        self._live.deliver(request, new, now)

    def _ending(self, node: NodeRef, ending: Ending, now: float) -> None:
        found = self.current(node, ending.request_id, ending.attempt)
        if found is None:
            self._live.num_dropped += 1
            return
        request, attempt = found
        if ending.reason in ("failed", "cancelled"):
            self._attempts.node_gave_up(request, attempt, node, ending, now)
            return
        attempt.ending, attempt.ended_by = ending, node.node_id
        if ending.prefill is not None:
            request.note_prefill(attempt, ending.prefill)
        self._live.finish_if_complete(request, now)
