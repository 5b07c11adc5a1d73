"""The ledger of evaluations: attempts at prefill nodes, and the one answer. Pure.

Commands are resent until their answer is here, and nodes say meanwhile that they have them; what is
over is told to its node until that was heard. Three attempts fail an evaluation.
"""

from dataclasses import dataclass

import msgspec

from gateway import wording
from gateway.actions import ToCoordinator, ToNode
from gateway.attempt import Failure
from gateway.attempts import (
    ANSWER_TIMEOUT_S,
    CLOSED_RETRY_S,
    FAIL_OVER_WAIT_S,
    MAX_FAILURES,
    PASSING,
    PLACE_TIMEOUT_S,
    RETRYABLE,
)
from gateway.evaluation_request import LiveEvaluation, NewEvaluation, fits
from gateway.live import Identity
from gateway.prefixes import RoutingPrefixes
from gateway.request import End
from tandem.messages.common import NodeRef
from tandem.messages.evaluation import (
    EvaluatePrompt,
    EvaluationDone,
    EvaluationForgotten,
    EvaluationOver,
    EvaluationTaken,
)
from tandem.messages.placement import (
    GatewayWelcome,
    NodeDown,
    Placed,
    PlaceRefused,
    RequestEndedAck,
)
from tandem.outbox import Outbox

OVER_FOR_S = 60.0  # a node that is silent for longer has heard no beat, and forgets by itself
MAX_UNACKNOWLEDGED = 50_000  # reports that are kept while there is no coordinator

Key = tuple[str | bytes | int, ...]


@dataclass(frozen=True, slots=True)
class EvaluationEnded:
    """Tell who asked: the answer, or why there is none."""

    request_id: bytes
    answer: EvaluationDone | End


EvaluationAction = ToCoordinator | ToNode | EvaluationEnded


class EvaluationLedger:
    """See the module. `num_labels`: of the model's classification head, 0 without one."""

    def __init__(self, identity: Identity, *, num_labels: int = 0) -> None:
        self._identity = identity
        self._num_labels = num_labels
        self._live: dict[bytes, LiveEvaluation] = {}
        self._outbox: Outbox[Key, NodeRef | None] = Outbox()
        self._overs: dict[Key, tuple[NodeRef, float]] = {}  # unanswered, and until when to say
        self._down_epochs: dict[str, int] = {}
        self._prefixes = RoutingPrefixes(
            key=identity.prefix_key, weights_fingerprint=identity.model_fingerprint
        )
        self._out: list[EvaluationAction] = []
        self.num_dropped = 0

    def __len__(self) -> int:
        return len(self._live)

    @property
    def nodes(self) -> tuple[NodeRef, ...]:
        """Nodes that run some."""
        return tuple({each.node for each in self._live.values() if each.node is not None})

    def owns(self, request_id: bytes) -> bool:
        """Whether what the coordinator says of a request is for this ledger."""
        return request_id in self._live or ("ended", request_id) in self._outbox

    # --- who asks ---------------------------------------------------------------------------

    def submit(self, new: NewEvaluation, now: float) -> list[EvaluationAction]:
        """Take a checked evaluation in and ask for its node."""
        live = self._live[new.request_id] = LiveEvaluation(new)
        self._ask(live, now)
        return self._flush(now)

    def cancel(self, request_id: bytes, now: float) -> list[EvaluationAction]:
        """Nobody waits for it any more."""
        live = self._live.get(request_id)
        if live is not None:
            end = End("cancelled", code="cancelled", message="by its client")
            self._end(live, end, now)
        return self._flush(now)

    def end_all(self, now: float) -> list[EvaluationAction]:
        """This gateway stops."""
        text = "the gateway stops: ask another one, or again later"
        for live in list(self._live.values()):
            self._end(live, End("failed", code="unavailable", message=text), now)
        return self._flush(now)

    # --- the coordinator --------------------------------------------------------------------

    def from_coordinator(self, message: msgspec.Struct, now: float) -> list[EvaluationAction]:
        """An answer for this ledger, or news for everybody."""
        match message:
            case Placed() | PlaceRefused():
                live = self._live.get(message.request_id)
                if live is None or live.asked_at is None or message.attempt != live.number:
                    self.num_dropped += 1
                elif isinstance(message, Placed):
                    self._placed(live, message, now)
                else:
                    self._refused(live, message, now)
            case RequestEndedAck(request_id=request_id):
                self._outbox.acknowledge(("ended", request_id))
            case NodeDown():
                self._node_down(message, now)
            case GatewayWelcome():
                self._prefixes.set_layout(message.page_size, message.kv_dtype)
                for down in message.recent_downs:
                    self._node_down(down, now)
        return self._flush(now)

    def _ask(self, live: LiveEvaluation, now: float) -> None:
        live.asked_at, live.refused = now, None
        live.chain = self._prefixes.chain(live.new.tenant, live.chain)
        place = live.place(self._identity, live.prefixes(), now)
        self._outbox.send(("place", live.request_id), None, place, now)

    def _placed(self, live: LiveEvaluation, placed: Placed, now: float) -> None:
        self._outbox.acknowledge(("place", live.request_id))
        node = placed.decode
        live.placed, live.asked_at = placed, None
        live.placed_at = now if live.placed_at is None else live.placed_at
        live.sent_at = live.heard_at = now
        if self._is_down(node):
            text = f"node {node.node_id} is down"
            self._fail(live, Failure("node_failed", text, (node.node_id,), is_death=True), now)
            return
        command = EvaluatePrompt(spec=live.spec(placed, now))
        self._outbox.send(("evaluate", live.request_id), node, command, now)

    def _refused(self, live: LiveEvaluation, refused: PlaceRefused, now: float) -> None:
        assert live.asked_at is not None, "it is awaited"
        is_fail_over = bool(live.failures) and refused.code in PASSING
        if is_fail_over and now < live.asked_at + FAIL_OVER_WAIT_S:
            live.refused = refused  # the question is repeated until there is a node again
            return
        self._end(live, wording.refusal(refused), now)

    # --- nodes ------------------------------------------------------------------------------

    def from_node(
        self, node: NodeRef, message: msgspec.Struct, now: float
    ) -> list[EvaluationAction]:
        """A word of the node on one of its evaluations."""
        match message:
            case EvaluationForgotten(request_id=request_id, attempt=attempt):
                key = _over_key(request_id, attempt, node)
                self._outbox.acknowledge(key)
                self._overs.pop(key, None)
            case EvaluationTaken(request_id=request_id, attempt=attempt):
                live = self._current(node, request_id, attempt)
                if live is not None:
                    live.heard_at = now
            case EvaluationDone():
                self._done(node, message, now)
        return self._flush(now)

    def _current(self, node: NodeRef, request_id: bytes, attempt: int) -> LiveEvaluation | None:
        live = self._live.get(request_id)
        at = None if live is None else live.node
        is_it = at is not None and (at.node_id, at.incarnation) == (node.node_id, node.incarnation)
        if live is None or not is_it or live.number != attempt:
            self.num_dropped += 1
            return None
        return live

    def _done(self, node: NodeRef, done: EvaluationDone, now: float) -> None:
        live = self._current(node, done.request_id, done.attempt)
        if live is None:
            over = EvaluationOver(request_id=done.request_id, attempt=done.attempt)
            self._out.append(ToNode(node, over))
        elif done.code is not None:
            text = f"{node.node_id}: {done.message or done.code}"
            self._fail(live, Failure(done.code, text, (node.node_id,)), now)
        elif fits(done, live.new.asked, self._num_labels):
            live.done = done
            self._end(live, None, now)
        else:
            text = f"{node.node_id} answered with other numbers than were asked for"
            self._fail(live, Failure("internal", text, (node.node_id,)), now)

    def _node_down(self, down: NodeDown, now: float) -> None:
        if down.epoch <= self._down_epochs.get(down.node_id, -1):
            return
        self._down_epochs[down.node_id] = down.epoch
        for key, (node, _) in list(self._overs.items()):
            if self._is_down(node):
                del self._overs[key]
                self._outbox.acknowledge(key)
        for live in list(self._live.values()):
            if live.node is not None and self._is_down(live.node):
                text = f"node {down.node_id} is down: {down.reason}"
                failure = Failure("node_failed", text, (down.node_id,), is_death=True)
                self._fail(live, failure, now)

    def _is_down(self, node: NodeRef) -> bool:
        return node.epoch <= self._down_epochs.get(node.node_id, -1)

    # --- time -------------------------------------------------------------------------------

    def tick(self, now: float) -> list[EvaluationAction]:
        """Deadlines, silence and resends; to be called every 0.1 s."""
        for live in list(self._live.values()):
            if live.deadline is not None and now >= live.deadline:
                text = f"not done within its deadline of {live.new.asked.deadline_s:g} s"
                self._end(live, End("failed", code="deadline_exceeded", message=text), now)
            elif live.node is not None:
                self._check_node(live, live.node, now)
            elif live.asked_at is None:
                if now >= live.ask_at:
                    self._ask(live, now)
            elif now >= live.asked_at + PLACE_TIMEOUT_S:
                unanswered = wording.no_coordinator(PLACE_TIMEOUT_S)
                refused = live.refused
                self._end(live, unanswered if refused is None else wording.refusal(refused), now)
        for key in [k for k, (_, until) in self._overs.items() if now >= until]:
            del self._overs[key]
            self._outbox.acknowledge(key)
        return self._flush(now)

    def _check_node(self, live: LiveEvaluation, node: NodeRef, now: float) -> None:
        """It answers every command at once, and commands are resent every 2 s."""
        if now > live.heard_at + ANSWER_TIMEOUT_S:
            text = wording.unreachable(node, ANSWER_TIMEOUT_S)
            self._fail(live, Failure("unavailable", text, (node.node_id,)), now)

    # --- ends -------------------------------------------------------------------------------

    def _fail(self, live: LiveEvaluation, failure: Failure, now: float) -> None:
        """End the attempt; ask for another node, or give up."""
        self._stop(live, now)
        live.failures.append(failure)
        live.num_failures += not failure.is_closed
        if failure.code not in RETRYABLE and not failure.is_closed:
            self._end(live, End("failed", code=failure.code, message=failure.message), now)
            return
        if live.num_failures >= MAX_FAILURES:
            reasons = "; ".join(each.message for each in live.failures if not each.is_closed)
            text = f"{live.num_failures} attempts failed: {reasons}"
            self._end(live, End("failed", code=failure.code, message=text), now)
            return
        live.number += 1
        live.placed = live.asked_at = None
        # A role that was closed just now is not known to the coordinator; others take turns.
        num_before = len(live.failures) - 1
        live.ask_at = now if failure.is_death else now + CLOSED_RETRY_S * num_before
        if now >= live.ask_at:
            self._ask(live, now)

    def _stop(self, live: LiveEvaluation, now: float) -> None:
        """Ask nothing more for it; its node may forget it."""
        self._outbox.acknowledge(("place", live.request_id))
        self._outbox.acknowledge(("evaluate", live.request_id))
        if live.node is None or self._is_down(live.node):
            return
        key = _over_key(live.request_id, live.number, live.node)
        self._overs[key] = (live.node, now + OVER_FOR_S)
        over = EvaluationOver(request_id=live.request_id, attempt=live.number)
        self._outbox.send(key, live.node, over, now)

    def _end(self, live: LiveEvaluation, end: End | None, now: float) -> None:
        """The one answer; without `end` it is there."""
        del self._live[live.request_id]
        self._stop(live, now)
        answer = live.done if end is None else end
        assert answer is not None, "it is done, or has an end"
        self._out.append(EvaluationEnded(live.request_id, answer))
        if len(self._outbox) < MAX_UNACKNOWLEDGED:
            report = live.ended(end, self._identity, now)
            self._outbox.send(("ended", live.request_id), None, report, now)

    def _flush(self, now: float) -> list[EvaluationAction]:
        out, self._out = self._out, []
        for node, message in self._outbox.due(now):
            out.append(ToCoordinator(message) if node is None else ToNode(node, message))
        return out


def _over_key(request_id: bytes, attempt: int, node: NodeRef) -> Key:
    return ("over", request_id, attempt, node.node_id)
