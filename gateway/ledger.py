"""The ledger of live requests: exactly-once streams, attempts, the one terminal state. Pure.

`handle(event, now) -> actions`. A request's tokens are accepted only from the nodes of its current
attempt; only this class starts attempts and ends requests. Whatever a node or the coordinator must
do is asked again until acknowledged.
"""

from dataclasses import dataclass

import msgspec

from gateway import wording
from gateway.actions import Action, CloseNode, NewRequest, ToClient, ToCoordinator, ToNode
from gateway.demands import Demands
from gateway.request import Attempt, End, LiveRequest
from gateway.text import Decode, TextStream
from gateway.token_stream import Divergence, Token, TokenStream
from tandem.messages.common import ErrorCode, FinishReason, NodeRef
from tandem.messages.placement import (
    NodeDown,
    Placed,
    PlaceRefused,
    RequestEndedAck,
)
from tandem.messages.serving import (
    CommandAck,
    CommandRefused,
    Emission,
    EmissionAck,
    Ending,
    TokenDelta,
    TokensTaken,
)
from tandem.states import RequestState

MAX_ATTEMPTS = 3
PLACE_TIMEOUT_S = 30.0
# A request that lost its nodes waits this long for new ones before it fails.
FAIL_OVER_WAIT_S = 30.0
# Nodes answer commands on arrival, and commands are resent every 2 s: some five were lost.
ANSWER_TIMEOUT_S = 10.0

# Another attempt could end otherwise; every other refusal would repeat itself.
RETRYABLE: frozenset[ErrorCode] = frozenset(
    {"node_failed", "transfer_failed", "unavailable", "overloaded", "internal"}
)
MISSING_NODES: frozenset[ErrorCode] = frozenset({"no_prefill_node", "no_decode_node"})

END_STATES: dict[FinishReason, RequestState] = {
    "stop": RequestState.FINISHED,
    "length": RequestState.FINISHED,
    "cancelled": RequestState.CANCELLED,
    "failed": RequestState.FAILED,
}


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this gateway is, and what its requests must know of the model."""

    gateway_id: str
    incarnation: int
    model_fingerprint: str
    eos_token_ids: tuple[int, ...]


class Ledger:
    """See the module. `decode` turns token ids into text, without special tokens."""

    def __init__(self, identity: Identity, decode: Decode) -> None:
        self._identity = identity
        self._decode = decode
        self._live: dict[bytes, LiveRequest] = {}
        self._demands = Demands(identity.gateway_id, identity.incarnation)
        self._out: list[Action] = []
        self.num_prompt_tokens = 0
        self.num_dropped = 0

    def __len__(self) -> int:
        return len(self._live)

    # --- what comes in ----------------------------------------------------------------------

    def submit(self, new: NewRequest, now: float) -> list[Action]:
        """Take a validated request in and ask for its placement."""
        end_ids = frozenset(new.params.stop_token_ids)
        if not new.params.ignore_eos:
            end_ids |= frozenset(self._identity.eos_token_ids)
        assert new.params.max_tokens is not None, "admission resolves max_tokens"
        request = LiveRequest(
            new=new,
            stream=TokenStream(new.params.max_tokens),
            text=TextStream(self._decode, new.params.stop, end_ids),
            end_ids=end_ids,
        )
        self._live[new.request_id] = request
        self.num_prompt_tokens += len(new.prompt_ids)
        accepted = wording.accepted(request, self._identity.model_fingerprint)
        self._out.append(ToClient(new.client, accepted))
        self._ask_placement(request, now)
        return self._flush(now)

    def from_coordinator(self, message: msgspec.Struct, now: float) -> list[Action]:
        """An answer of the coordinator, or news of a node."""
        match message:
            case Placed():
                self._placed(message, now)
            case PlaceRefused():
                self._place_refused(message, now)
            case RequestEndedAck():
                self._demands.end_is_counted(message.request_id)
            case NodeDown():
                self._node_down(message, now)
            case _:
                self.num_dropped += 1
        return self._flush(now)

    def from_node(self, node: NodeRef, message: msgspec.Struct, now: float) -> list[Action]:
        """An answer or an emission that came over the link to `node`."""
        match message:
            case CommandAck():
                self._demands.settle(node, message)
            case CommandRefused():
                self._command_refused(node, message, now)
            case Emission() if (message.node_id, message.incarnation) == (
                node.node_id,
                node.incarnation,
            ):
                self._emission(node, message, now)
            case _:
                self.num_dropped += 1
        return self._flush(now)

    def cancel(self, client: bytes, request_id: bytes, now: float) -> list[Action]:
        """A client wants one of its own requests to end."""
        request = self._live.get(request_id)
        if request is not None and request.new.client == client:
            self._end(request, End("cancelled", code="cancelled", message="by its client"), now)
        return self._flush(now)

    def client_gone(self, client: bytes, now: float) -> list[Action]:
        """A client cannot be reached: end its requests; nothing is sent to it any more."""
        for request in [r for r in self._live.values() if r.new.client == client]:
            self._end(request, End("cancelled", code="cancelled", message="client gone"), now)
        self._out = [a for a in self._out if not (isinstance(a, ToClient) and a.client == client)]
        return self._flush(now)

    def end_all(self, now: float) -> list[Action]:
        """This gateway stops: no client is left without an end."""
        for request in list(self._live.values()):
            text = "the gateway stops: submit again to another one, or later"
            self._end(request, End("failed", code="unavailable", message=text), now)
        return self._flush(now)

    def tick(self, now: float) -> list[Action]:
        """Deadlines and resends; to be called every 0.1 s."""
        for request in list(self._live.values()):
            if request.deadline is not None and now >= request.deadline:
                text = f"not finished within its deadline of {request.new.deadline_s:g} s"
                self._end(request, End("failed", code="deadline_exceeded", message=text), now)
            elif request.state is RequestState.PLACING:
                self._check_placing(request, now)
            elif request.state is not RequestState.DECODING:
                self._check_answers(request, now)
        self._out += self._demands.give_up(now)
        return self._flush(now)

    def _flush(self, now: float) -> list[Action]:
        out, self._out = self._out, []
        for node, message in self._demands.due(now):
            out.append(ToCoordinator(message) if node is None else ToNode(node, message))
        return out

    # --- placement --------------------------------------------------------------------------

    def _ask_placement(self, request: LiveRequest, now: float) -> None:
        request.enter(RequestState.PLACING)
        request.asked_at, request.refused = now, None
        self._demands.ask_placement(request, now)

    def _placing(self, message: Placed | PlaceRefused) -> LiveRequest | None:
        """The request that waits for this answer."""
        request = self._live.get(message.request_id)
        if request is None or (request.state, request.attempt_number) != (
            RequestState.PLACING,
            message.attempt,
        ):
            self.num_dropped += 1
            return None
        return request

    def _placed(self, placed: Placed, now: float) -> None:
        request = self._placing(placed)
        if request is None:
            return
        self._demands.is_answered(request)
        attempt = request.start_attempt(placed, now)
        down = [node for node in attempt.nodes if self._demands.is_down(node)]
        if down:
            self._fail_attempt(request, "node_failed", f"node {down[0].node_id} is down", now)
            return
        self._demands.command(request, attempt, now)

    def _place_refused(self, refused: PlaceRefused, now: float) -> None:
        request = self._placing(refused)
        if request is None:
            return
        is_fail_over = request.attempt_number > 1 and refused.code in MISSING_NODES
        if is_fail_over and now < request.asked_at + FAIL_OVER_WAIT_S:
            request.refused = refused  # the question is repeated until there are nodes again
            return
        self._end(request, wording.refusal(refused), now)

    def _check_placing(self, request: LiveRequest, now: float) -> None:
        if now < request.asked_at + PLACE_TIMEOUT_S:
            return
        if request.refused is None:
            self._end(request, wording.no_coordinator(PLACE_TIMEOUT_S), now)
        else:
            self._end(request, wording.refusal(request.refused), now)

    def _check_answers(self, request: LiveRequest, now: float) -> None:
        """A node may be heard by the coordinator and still be out of this gateway's reach."""
        if request.attempt is None or now <= request.attempt.sent + ANSWER_TIMEOUT_S:
            return
        node = self._demands.unanswered(request)
        if node is not None:
            text = wording.unreachable(node, ANSWER_TIMEOUT_S)
            self._fail_attempt(request, "node_failed", text, now)

    # --- tokens -----------------------------------------------------------------------------

    def _emission(self, node: NodeRef, emission: Emission, now: float) -> None:
        """Take what belongs to current attempts; acknowledge everything, so nodes may forget."""
        for request_id, number, report in emission.prefills:
            if (found := self._current(node, request_id, number)) is not None:
                found[0].note_prefill(report)
        taken: list[TokensTaken] = []
        ended: list[tuple[bytes, int]] = []
        for delta in emission.deltas:
            taken.append(self._delta(node, delta, now))
            if self._current(node, delta.request_id, delta.attempt) is None:
                ended.append((delta.request_id, delta.attempt))
        for ending in emission.endings:
            self._ending(node, ending, now)
            ended.append((ending.request_id, ending.attempt))
        self._out.append(ToNode(node, EmissionAck(taken=tuple(taken), ended=tuple(ended))))

    def _current(
        self, node: NodeRef, request_id: bytes, number: int
    ) -> tuple[LiveRequest, Attempt] | None:
        """The live request and its attempt, where that is the current one and `node` serves it."""
        request = self._live.get(request_id)
        attempt = None if request is None else request.attempt
        if request is None or attempt is None or attempt.number != number:
            return None
        return (request, attempt) if attempt.has_node(node) else None

    def _delta(self, node: NodeRef, delta: TokenDelta, now: float) -> TokensTaken:
        """Take tokens; the answer is below which index the node may forget the attempt's."""
        next_index = delta.start + len(delta.ids)
        found = self._current(node, delta.request_id, delta.attempt)
        if found is None:
            self.num_dropped += 1
        else:
            request, attempt = found
            self._take(request, attempt, node, delta, now)
            if request.request_id in self._live and request.attempt is attempt:
                next_index = request.stream.next_index
        return TokensTaken(
            request_id=delta.request_id, attempt=delta.attempt, next_index=next_index
        )

    def _take(
        self, request: LiveRequest, attempt: Attempt, node: NodeRef, delta: TokenDelta, now: float
    ) -> None:
        try:
            new = request.stream.offer(delta.start, delta.ids, delta.logprobs)
        except Divergence as error:
            self._fail_attempt(request, "internal", f"{node.node_id}: {error}", now)
            return
        if attempt.is_decoder(node):
            request.enter(RequestState.DECODING)
        elif request.state is RequestState.PREFILLING:
            request.enter(RequestState.TRANSFERRING)
        self._deliver(request, new, now)

    def _deliver(self, request: LiveRequest, new: list[Token], now: float) -> None:
        """Stream accepted tokens to the client, up to a stop string."""
        if not new:
            return
        first = request.stream.next_index - len(new)
        request.note_tokens(now)
        text = ""
        for position, token in enumerate(new):
            piece, stop = request.text.push(token.token_id)
            text += piece
            if stop is not None:
                request.stream.cut(first + position + 1)
                self._say(request, first, new[: position + 1], text)
                self._end(request, End("stop", stop_string=stop), now)
                return
        self._say(request, first, new, text)
        self._finish_if_complete(request, now)

    def _say(self, request: LiveRequest, first: int, tokens: list[Token], text: str) -> None:
        for output in wording.outputs(request.request_id, first, tokens, text):
            self._out.append(ToClient(request.new.client, output))

    def _ending(self, node: NodeRef, ending: Ending, now: float) -> None:
        found = self._current(node, ending.request_id, ending.attempt)
        if found is None:
            self.num_dropped += 1
            return
        request, attempt = found
        if ending.reason in ("failed", "cancelled"):
            if attempt.is_decoder(node) or request.state is not RequestState.DECODING:
                self._node_gave_up(request, node, ending, now)
            return
        attempt.ending, attempt.ended_by = ending, node.node_id
        if ending.prefill is not None:
            request.note_prefill(ending.prefill)
        self._finish_if_complete(request, now)

    def _node_gave_up(
        self, request: LiveRequest, node: NodeRef, ending: Ending, now: float
    ) -> None:
        """A node that cancels a request unasked (it drains, or lost sight of us) failed it."""
        is_named = ending.code is not None and ending.code != "cancelled"
        code: ErrorCode = ending.code if is_named and ending.code is not None else "unavailable"
        message = ending.message or f"{node.node_id} gave the request up"
        self._fail_attempt(request, code, message, now)

    def _finish_if_complete(self, request: LiveRequest, now: float) -> None:
        """The end comes when it is known and all tokens before it are delivered."""
        ending = None if request.attempt is None else request.attempt.ending
        if ending is not None and request.stream.next_index >= ending.end_index:
            self._end(request, End(ending.reason), now)

    # --- attempts and ends ------------------------------------------------------------------

    def _command_refused(self, node: NodeRef, refused: CommandRefused, now: float) -> None:
        self._demands.settle(node, refused)
        found = self._current(node, refused.request_id, refused.attempt)
        if found is not None and refused.command != "cancel":
            text = f"{node.node_id}: {refused.message}"
            self._fail_attempt(found[0], refused.code, text, now)

    def _node_down(self, down: NodeDown, now: float) -> None:
        """A node lost its lease: attempts on it are over, unless decode already carries on."""
        if not self._demands.note_down(down):
            return
        for request in list(self._live.values()):
            attempt = request.attempt
            if attempt is None or not any(self._demands.is_down(node) for node in attempt.nodes):
                continue
            if request.state is RequestState.DECODING and not self._demands.is_down(attempt.decode):
                self._demands.withdraw(request)
                continue
            text = f"node {down.node_id} is down: {down.reason}"
            self._fail_attempt(request, "node_failed", text, now)
        # Cancels follow it: they open a new link, which is closed once they are answered.
        self._out.append(CloseNode(down.node_id, down.epoch, down.reason))
        self._demands.leave_down_nodes()

    def _fail_attempt(
        self, request: LiveRequest, code: ErrorCode, message: str, now: float
    ) -> None:
        """End the attempt on all its nodes; start another one, finish, or give up."""
        self._demands.stop(request, now, request.busy_nodes(is_cut=True))
        request.failures.append(message)
        if request.is_complete():
            is_stop = request.stream.ids[-1] in request.end_ids
            self._end(request, End("stop" if is_stop else "length"), now)
        elif code not in RETRYABLE:
            self._end(request, End("failed", code=code, message=message), now)
        elif request.attempt_number >= MAX_ATTEMPTS:
            text = f"{MAX_ATTEMPTS} attempts failed: {'; '.join(request.failures)}"
            self._end(request, End("failed", code=code, message=text), now)
        else:
            request.attempt = None
            request.attempt_number += 1
            request.stream.drop_ahead()
            self._ask_placement(request, now)

    def _end(self, request: LiveRequest, end: End, now: float) -> None:
        """The terminal state: told to the client and the coordinator, once."""
        del self._live[request.request_id]
        self.num_prompt_tokens -= len(request.new.prompt_ids)
        self._demands.stop(request, now, request.busy_nodes(is_cut=end.is_cut))
        if end.stop_string is None:
            text, stop = request.text.flush()
            if text:
                self._say(request, request.stream.next_index, [], text)
            if stop is not None and not end.is_cut:
                end = End("stop", stop_string=stop)
        request.enter(END_STATES[end.reason])
        self._out.append(ToClient(request.new.client, wording.done(request, end, now)))
        self._demands.report_end(request, end.reason, now)
