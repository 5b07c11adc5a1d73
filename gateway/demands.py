"""What nodes and the coordinator are asked for a request, repeated until they acknowledge. Pure.

Also knows which nodes are down: of those nothing is asked but, for a while, to cancel.
"""

from collections.abc import Iterable

import msgspec

from gateway.actions import CloseNode
from gateway.attempt import Attempt
from tandem.messages.common import NodeRef
from tandem.messages.placement import NodeDown, Place, RequestEnded
from tandem.messages.serving import (
    AskAttempt,
    Cancel,
    CommandAck,
    CommandRefused,
    Decode,
    Prefill,
    RequestSpec,
)
from tandem.outbox import Outbox

# Without a coordinator the reports of ends pile up; beyond this many they are not kept.
MAX_UNACKNOWLEDGED = 50_000
# A node that is silent for longer has heard no beat of this gateway either, and cancels by itself.
CANCEL_FOR_S = 60.0

Key = tuple[str | bytes | int, ...]


class Demands:
    """See the module. The coordinator is the destination None."""

    def __init__(self) -> None:
        self._outbox: Outbox[Key, NodeRef | None] = Outbox()
        self._cancels: dict[Key, tuple[NodeRef, float]] = {}  # unanswered, and until when to ask
        self._leaving: set[NodeRef] = set()  # down, with cancels on their way
        self._down_epochs: dict[str, int] = {}

    def due(self, now: float) -> list[tuple[NodeRef | None, msgspec.Struct]]:
        """What to send now."""
        return self._outbox.due(now)

    # --- the coordinator --------------------------------------------------------------------

    def ask_placement(self, place: Place, now: float) -> None:
        """Ask for nodes; takes the place of an earlier question for the same request."""
        self._outbox.send(("place", place.request_id), None, place, now)

    def drop_question(self, request_id: bytes) -> None:
        """The question for nodes was answered, or its answer is of no use any more."""
        self._outbox.acknowledge(("place", request_id))

    def report_end(self, report: RequestEnded, now: float) -> None:
        """Tell how a request ended."""
        if len(self._outbox) < MAX_UNACKNOWLEDGED:
            self._outbox.send(("ended", report.request_id), None, report, now)

    def end_is_counted(self, request_id: bytes) -> None:
        """The coordinator counted a request's end."""
        self._outbox.acknowledge(("ended", request_id))

    # --- nodes ------------------------------------------------------------------------------

    def command(self, spec: RequestSpec, attempt: Attempt, now: float) -> None:
        """Send the attempt's commands to its nodes, both at once."""
        attempt.busy = list(attempt.nodes)
        if attempt.prefill is not None:
            prefill = Prefill(spec=spec, decode=attempt.decode)
            self._ask("prefill", spec.request_id, attempt, attempt.prefill, prefill, now)
        decode = Decode(spec=spec, prefill=attempt.prefill)
        self._ask("decode", spec.request_id, attempt, attempt.decode, decode, now)

    def ask_attempt(
        self, request_id: bytes, attempt: Attempt, nodes: Iterable[NodeRef], now: float
    ) -> None:
        """Ask nodes what they have of the attempt."""
        question = AskAttempt(request_id=request_id, attempt=attempt.number)
        for node in nodes:
            self._ask("ask", request_id, attempt, node, question, now)

    def _ask(
        self,
        kind: str,
        request_id: bytes,
        attempt: Attempt,
        node: NodeRef,
        message: msgspec.Struct,
        now: float,
    ) -> None:
        self._outbox.send(_key(kind, request_id, attempt, node), node, message, now)

    def settle(self, node: NodeRef, answer: CommandAck | CommandRefused) -> None:
        """A node answered a command."""
        key = (answer.command, answer.request_id, answer.attempt, node.node_id)
        self._outbox.acknowledge(key)
        self._cancels.pop(key, None)

    def has_answered(self, request_id: bytes, attempt: Attempt, node: NodeRef) -> bool:
        """Whether the node has answered its commands of this attempt."""
        kinds = ("prefill", "decode")
        return not any(_key(k, request_id, attempt, node) in self._outbox for k in kinds)

    def withdraw(self, request_id: bytes, attempt: Attempt, node: NodeRef) -> None:
        """Ask nothing more of one of the attempt's nodes."""
        for kind in ("prefill", "decode", "ask"):
            self._outbox.acknowledge(_key(kind, request_id, attempt, node))

    def drop_ask(self, request_id: bytes, attempt: Attempt) -> None:
        """It is known, or of no interest any more, what the nodes have."""
        for node in attempt.nodes:
            self._outbox.acknowledge(_key("ask", request_id, attempt, node))

    def stop(
        self, request_id: bytes, attempt: Attempt, nodes: Iterable[NodeRef], now: float
    ) -> None:
        """Withdraw all that the attempt asks for, and cancel it on those of `nodes` that got it.

        Also on one that went down just now: it may only have lost sight of the coordinator.
        """
        for node in attempt.nodes:
            self.withdraw(request_id, attempt, node)
        for node in nodes:
            key = _key("cancel", request_id, attempt, node)
            cancel = Cancel(request_id=request_id, attempt=attempt.number)
            self._cancels[key] = (node, now + CANCEL_FOR_S)
            self._outbox.send(key, node, cancel, now)
            if self.is_down(node):
                self._leaving.add(node)

    # --- which nodes are down ---------------------------------------------------------------

    def is_down(self, node: NodeRef) -> bool:
        """Whether this epoch of the node is over."""
        return self.is_past(node.node_id, node.epoch)

    def is_past(self, node_id: str, epoch: int) -> bool:
        """Whether an epoch of a node is over."""
        return epoch <= self._down_epochs.get(node_id, -1)

    def note_down(self, down: NodeDown) -> bool:
        """The node's epochs up to this one are over; False where that is old news.

        Cancels that are on their way to it are still repeated.
        """
        if self.is_past(down.node_id, down.epoch):
            return False
        self._down_epochs[down.node_id] = down.epoch
        self._leaving |= {node for node, _ in self._cancels.values() if self.is_down(node)}
        return True

    def give_up(self, now: float) -> list[CloseNode]:
        """Drop cancels that nobody answers; hang up on down nodes that have none left."""
        for key in [k for k, (_, until) in self._cancels.items() if now >= until]:
            del self._cancels[key]
            self._outbox.acknowledge(key)
        if not self._leaving:
            return []
        idle = self._leaving - {node for node, _ in self._cancels.values()}
        self._leaving -= idle
        reason = "nothing is asked of it any more"
        in_order = sorted(idle, key=lambda node: node.epoch)
        return [CloseNode(node.node_id, node.epoch, reason) for node in in_order]


def _key(kind: str, request_id: bytes, attempt: Attempt, node: NodeRef) -> Key:
    return (kind, request_id, attempt.number, node.node_id)
