"""What nodes and the coordinator are asked for a request, repeated until they acknowledge. Pure.

Also knows which nodes are down: of those nothing is asked but, for a while, to cancel.
"""

from collections.abc import Iterable

import msgspec

from gateway import wording
from gateway.actions import CloseNode
from gateway.request import Attempt, LiveRequest
from tandem.messages.common import FinishReason, NodeRef
from tandem.messages.placement import NodeDown
from tandem.messages.serving import Cancel, CommandAck, CommandRefused, Decode, Prefill
from tandem.outbox import Outbox

# Without a coordinator the reports of ends pile up; beyond this many they are not kept.
MAX_UNACKNOWLEDGED = 50_000
# A node that is silent for longer has heard no beat of this gateway either, and cancels by itself.
CANCEL_FOR_S = 60.0

Key = tuple[str | bytes | int, ...]


class Demands:
    """See the module. The coordinator is the destination None."""

    def __init__(self, gateway_id: str, incarnation: int) -> None:
        self._gateway_id = gateway_id
        self._incarnation = incarnation
        self._outbox: Outbox[Key, NodeRef | None] = Outbox()
        self._nodes: set[NodeRef] = set()  # those that got commands and are not down
        self._cancels: dict[Key, tuple[NodeRef, float]] = {}  # unanswered, and until when to ask
        self._leaving: set[NodeRef] = set()  # down, with cancels on their way
        self._down_epochs: dict[str, int] = {}

    def due(self, now: float) -> list[tuple[NodeRef | None, msgspec.Struct]]:
        """What to send now."""
        return self._outbox.due(now)

    def ask_placement(self, request: LiveRequest, now: float) -> None:
        """Ask the coordinator for nodes."""
        place = request.place(self._gateway_id, self._incarnation)
        self._outbox.send(("place", request.request_id), None, place, now)

    def is_answered(self, request: LiveRequest) -> None:
        """The coordinator answered the question for nodes."""
        self._outbox.acknowledge(("place", request.request_id))

    def command(self, request: LiveRequest, attempt: Attempt, now: float) -> None:
        """Send the attempt's commands to its nodes, both at once."""
        self._nodes.update(attempt.nodes)
        spec = request.spec(now)
        if attempt.prefill is not None:
            prefill = Prefill(spec=spec, decode=attempt.decode)
            self._outbox.send(
                _key("prefill", request, attempt.prefill), attempt.prefill, prefill, now
            )
        decode = Decode(spec=spec, prefill=attempt.prefill)
        self._outbox.send(_key("decode", request, attempt.decode), attempt.decode, decode, now)

    def settle(self, node: NodeRef, answer: CommandAck | CommandRefused) -> None:
        """A node answered a command."""
        key = (answer.command, answer.request_id, answer.attempt, node.node_id)
        self._outbox.acknowledge(key)
        self._cancels.pop(key, None)

    def unanswered(self, request: LiveRequest) -> NodeRef | None:
        """A node that has not answered its command of the current attempt."""
        for node in () if request.attempt is None else request.attempt.nodes:
            if any(_key(kind, request, node) in self._outbox for kind in ("prefill", "decode")):
                return node
        return None

    def withdraw(self, request: LiveRequest) -> None:
        """Ask nothing more for the request's current attempt."""
        self.is_answered(request)
        for node in () if request.attempt is None else request.attempt.nodes:
            self._outbox.acknowledge(_key("prefill", request, node))
            self._outbox.acknowledge(_key("decode", request, node))

    def stop(self, request: LiveRequest, now: float, nodes: Iterable[NodeRef]) -> None:
        """Withdraw all that the attempt asks for, and cancel it on those of `nodes` that got it.

        Also on one that went down just now: it may only have lost sight of the coordinator.
        """
        self.withdraw(request)
        for node in nodes:
            if node in self._nodes:
                key = _key("cancel", request, node)
                cancel = Cancel(request_id=request.request_id, attempt=request.attempt_number)
                self._cancels[key] = (node, now + CANCEL_FOR_S)
                self._outbox.send(key, node, cancel, now)

    def report_end(self, request: LiveRequest, reason: FinishReason, now: float) -> None:
        """Tell the coordinator how the request ended."""
        if len(self._outbox) < MAX_UNACKNOWLEDGED:
            report = wording.ended(request, reason, now, self._gateway_id, self._incarnation)
            self._outbox.send(("ended", request.request_id), None, report, now)

    def end_is_counted(self, request_id: bytes) -> None:
        """The coordinator counted a request's end."""
        self._outbox.acknowledge(("ended", request_id))

    def is_down(self, node: NodeRef) -> bool:
        """Whether this epoch of the node is over."""
        return node.epoch <= self._down_epochs.get(node.node_id, -1)

    def note_down(self, down: NodeDown) -> bool:
        """The node's epochs up to this one are over; False where that is old news."""
        if down.epoch <= self._down_epochs.get(down.node_id, -1):
            return False
        self._down_epochs[down.node_id] = down.epoch
        return True

    def leave_down_nodes(self) -> None:
        """Ask nothing new of nodes that are down; cancels on their way are still repeated."""
        down = {node for node in self._nodes if self.is_down(node)}
        self._nodes -= down
        self._leaving |= down & {node for node, _ in self._cancels.values()}

    def give_up(self, now: float) -> list[CloseNode]:
        """Drop cancels that nobody answers; hang up on down nodes that have none left."""
        for key in [k for k, (_, until) in self._cancels.items() if now >= until]:
            del self._cancels[key]
            self._outbox.acknowledge(key)
        idle = self._leaving - {node for node, _ in self._cancels.values()}
        self._leaving -= idle
        reason = "nothing is asked of it any more"
        in_order = sorted(idle, key=lambda node: node.epoch)
        return [CloseNode(node.node_id, node.epoch, reason) for node in in_order]


def _key(kind: str, request: LiveRequest, node: NodeRef) -> Key:
    return (kind, request.request_id, request.attempt_number, node.node_id)
