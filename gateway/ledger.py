"""The ledger of live requests: exactly-once streams, attempts, the one terminal state. Pure.

Events and the time go in, actions come out. A request's tokens are accepted only from the nodes of
its current attempt; only the ledger starts attempts and ends requests. Whatever a node or the
coordinator must do is asked again until acknowledged.
"""

import msgspec

from gateway.actions import Action, NewRequest, ToClient, ToCoordinator, ToNode
from gateway.attempts import Attempts
from gateway.emissions import Emissions
from gateway.live import Identity, LiveRequests
from gateway.moves import Moves
from gateway.request import End
from gateway.text import Decode, Whole
from tandem.messages.common import NodeRef
from tandem.messages.placement import (
    GatewayWelcome,
    MoveRequest,
    NodeDown,
    Placed,
    PlaceRefused,
    RequestEndedAck,
)
from tandem.messages.serving import (
    Adopt,
    Adopted,
    AttemptStatus,
    CommandAck,
    CommandRefused,
    Emission,
    MoveWanted,
)
from tandem.stats_line import Sample

__all__ = ["Identity", "Ledger"]


class Ledger:
    """See the module. `decode` turns token ids into text, without special tokens; `whole` is as
    for a `Detokenizer`."""

    def __init__(self, identity: Identity, decode: Decode, whole: Whole | None = None) -> None:
        self._live = LiveRequests(identity, decode, whole)
        self._attempts = Attempts(self._live)
        self._moves = Moves(self._live, self._attempts)
        self._emissions = Emissions(self._live, self._attempts)

    def __len__(self) -> int:
        return len(self._live.by_id)

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of all live prompts."""
        return self._live.num_prompt_tokens

    @property
    def num_waiting(self) -> int:
        """Live requests without a token."""
        return sum(each.first_token_at is None for each in self._live.by_id.values())

    @property
    def num_output_tokens(self) -> int:
        """Tokens delivered since the start."""
        return self._live.num_output_tokens

    def sample(self) -> Sample:
        """The figures of the line that is logged every ten seconds."""
        num_waiting = self.num_waiting
        return Sample(
            num_prompt_tokens=self._live.num_computed_tokens,
            num_output_tokens=self._live.num_output_tokens,
            num_running=len(self) - num_waiting,
            num_waiting=num_waiting,
            num_cached_tokens=self._live.num_cached_tokens,
        )

    @property
    def num_dropped(self) -> int:
        """Messages and parts of them that were late, unknown or nobody's."""
        return self._live.num_dropped

    @property
    def nodes(self) -> tuple[NodeRef, ...]:
        """Nodes that have live requests, each under the highest epoch that they know it by."""
        found: dict[str, NodeRef] = {}
        for request in self._live.by_id.values():
            for node in () if request.attempt is None else request.attempt.nodes:
                known = found.get(node.node_id)
                if known is None or node.epoch > known.epoch:
                    found[node.node_id] = node
        return tuple(found.values())

    # --- clients ----------------------------------------------------------------------------

    def submit(self, new: NewRequest, now: float) -> list[Action]:
        """Take a validated request in and ask for its placement."""
        request = self._live.enter(new, now)
        if request is not None:
            self._attempts.first(request, now)
        return self._flush(now)

    def cancel(self, client: bytes, request_id: bytes, now: float) -> list[Action]:
        """A client wants one of its own requests to end."""
        request = self._live.by_id.get(request_id)
        if request is not None and request.new.client == client:
            self._cancel(request_id, "by its client", now)
        return self._flush(now)

    def client_gone(self, client: bytes, now: float) -> list[Action]:
        """A client cannot be reached: end its requests; nothing is sent to it any more."""
        for request in [r for r in self._live.by_id.values() if r.new.client == client]:
            self._cancel(request.request_id, "client gone", now)
        self._live.out = [
            a for a in self._live.out if not (isinstance(a, ToClient) and a.client == client)
        ]
        return self._flush(now)

    def _cancel(self, request_id: bytes, why: str, now: float) -> None:
        end = End("cancelled", code="cancelled", message=why)
        self._live.end(self._live.by_id[request_id], end, now)

    def end_all(self, now: float) -> list[Action]:
        """This gateway stops: no client is left without an end."""
        for request in list(self._live.by_id.values()):
            text = "the gateway stops: submit again to another one, or later"
            self._live.end(request, End("failed", code="unavailable", message=text), now)
        return self._flush(now)

    # --- the coordinator --------------------------------------------------------------------

    def from_coordinator(self, message: msgspec.Struct, now: float) -> list[Action]:
        """An answer of the coordinator, or news of the nodes."""
        match message:
            case Placed() | PlaceRefused():
                self._answered(message, now)
            case RequestEndedAck():
                self._live.demands.end_is_counted(message.request_id)
            case NodeDown():
                self._attempts.node_down(message, now)
            case MoveRequest(request_id=request_id, attempt=attempt):
                self._moves.wish(request_id, attempt, now)
            case GatewayWelcome():
                self._live.prefixes.set_layout(message.page_size, message.kv_dtype)
                self._live.draining = frozenset(message.draining_nodes)
                self._live.leaving = self._live.draining | frozenset(message.closed_decodes)
                for down in message.recent_downs:
                    self._attempts.node_down(down, now)
            case _:
                self._live.num_dropped += 1
        return self._flush(now)

    def _answered(self, answer: Placed | PlaceRefused, now: float) -> None:
        request = self._live.by_id.get(answer.request_id)
        if request is None:
            self._live.num_dropped += 1
            return
        move = request.move if request.move and request.move.number == answer.attempt else None
        match answer:
            case Placed() if move is not None:
                self._moves.placed(request, move, answer, now)
            case Placed():
                self._attempts.placed(request, answer, now)
            case PlaceRefused() if move is not None:
                self._moves.refused(request, now)
            case PlaceRefused():
                self._attempts.refused(request, answer, now)

    # --- nodes ------------------------------------------------------------------------------

    def from_node(self, node: NodeRef, message: msgspec.Struct, now: float) -> list[Action]:
        """An answer or an emission that came over the link to `node`."""
        match message:
            case CommandAck():
                self._live.demands.settle(node, message)
                self._live.num_dropped += self._live.demands.is_down(node)
            case CommandRefused():
                self._command_refused(node, message, now)
            case Emission() if (message.node_id, message.incarnation) == (
                node.node_id,
                node.incarnation,
            ):
                self._live.out.append(ToNode(node, self._emissions.take(node, message, now)))
            case AttemptStatus():
                self._status(node, message, now)
            case MoveWanted(request_id=request_id, attempt=number):
                if self._emissions.current(node, request_id, number) is None:
                    self._live.num_dropped += 1
                else:
                    self._moves.wish(request_id, number, now)
            case Adopt():
                self._live.out.append(ToNode(node, self._adopted(node, message)))
            case _:
                self._live.num_dropped += 1
        return self._flush(now)

    def _command_refused(self, node: NodeRef, refused: CommandRefused, now: float) -> None:
        self._live.demands.settle(node, refused)
        found = self._emissions.current(node, refused.request_id, refused.attempt)
        if found is None or refused.command == "cancel" or self._live.demands.is_down(node):
            self._live.num_dropped += 1
        else:
            self._attempts.command_refused(found[0], node, refused, now)

    def _status(self, node: NodeRef, answer: AttemptStatus, now: float) -> None:
        found = self._emissions.current(node, answer.request_id, answer.attempt)
        if found is None:
            self._live.num_dropped += 1
        else:
            self._attempts.status(*found, node, answer, now)

    def _adopted(self, node: NodeRef, question: Adopt) -> Adopted:
        """Whether a decode node is to keep the pages that it granted."""
        found = self._emissions.current(node, question.request_id, question.attempt)
        return Adopted(
            request_id=question.request_id,
            attempt=question.attempt,
            is_wanted=found is not None and found[1].is_decoder(node),
        )

    # --- time -------------------------------------------------------------------------------

    def tick(self, now: float) -> list[Action]:
        """Deadlines, turns, moves and resends; to be called every 0.1 s."""
        self._attempts.tick(now)
        self._moves.tick(now)
        self._live.out += self._live.demands.give_up(now)
        return self._flush(now)

    def _flush(self, now: float) -> list[Action]:
        out, self._live.out = self._live.out, []
        for node, message in self._live.demands.due(now):
            out.append(ToCoordinator(message) if node is None else ToNode(node, message))
        return out
