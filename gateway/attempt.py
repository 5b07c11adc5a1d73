"""One attempt at a request, what makes it fail, and the move of a running request. Values.

Only a gateway makes attempts; their numbers grow over the life of a request.
"""

from dataclasses import dataclass, field

from tandem.messages.common import ErrorCode, NodeRef, PrefillReport
from tandem.messages.placement import Placed
from tandem.messages.serving import AttemptStatus, Ending


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt is over. `nodes` are at fault; `is_death` where one of them went down.

    `is_closed`: a node does not serve the role any more, which is nobody's fault.
    """

    code: ErrorCode
    message: str
    nodes: tuple[str, ...] = ()
    is_death: bool = False

    @property
    def is_closed(self) -> bool:
        """Whether a node had closed the role, as the coordinator did not know or not yet."""
        return self.code == "not_serving"


@dataclass(frozen=True, slots=True)
class Doubt:
    """Does the decode node have the KV? Asked `until`, when the prefill node failed, or when the
    decode node has been silent for long."""

    until: float
    failure: Failure


@dataclass(frozen=True, slots=True)
class Move:
    """The coordinator is asked for a place away from a node; the old attempt goes on.

    `is_wished`: the node does not leave, the request would only be better off elsewhere.
    """

    number: int
    leaving: NodeRef
    is_wished: bool = False


@dataclass(slots=True)
class Attempt:
    """A placed attempt; `sent` is when its commands went out, on the gateway's clock."""

    number: int
    prefill: NodeRef | None
    decode: NodeRef
    sequence: int
    sent: float
    is_move: bool = False  # until its decode node carries on
    busy: list[NodeRef] = field(default_factory=list)  # commanded, to be told of an early end
    doubt: Doubt | None = None
    heard_at: float = 0.0  # when its nodes last said that they have it
    answers: dict[str, AttemptStatus] | None = None  # by node, where all were asked and some told
    report: PrefillReport | None = None
    ending: Ending | None = None
    ended_by: str | None = None  # the node that sent the ending

    @classmethod
    def of(cls, placed: Placed, now: float, *, is_move: bool) -> "Attempt":
        """The attempt that a placement makes."""
        return cls(
            number=placed.attempt,
            prefill=placed.prefill,
            decode=placed.decode,
            sequence=placed.sequence,
            sent=now,
            heard_at=now,
            is_move=is_move,
        )

    @property
    def nodes(self) -> tuple[NodeRef, ...]:
        """The nodes that serve it."""
        return (self.decode,) if self.prefill is None else (self.prefill, self.decode)

    def is_decoder(self, node: NodeRef) -> bool:
        """Whether the node decodes it (and, without a prefill node, prefills it too)."""
        return node.node_id == self.decode.node_id

    def has_node(self, node: NodeRef) -> bool:
        """Whether this incarnation of the node serves the attempt."""
        return _is_same(self.decode, node) or (
            self.prefill is not None and _is_same(self.prefill, node)
        )

    def busy_nodes(self, *, is_cut: bool) -> tuple[NodeRef, ...]:
        """Nodes that must be told that the attempt is over; cut short, all that are at work."""
        if is_cut or self.ended_by is None:
            return tuple(self.busy)
        # Where token 0 ended the request, the decode node still waits for pages.
        is_waiting = self.ended_by != self.decode.node_id and self.decode in self.busy
        return (self.decode,) if is_waiting else ()


def _is_same(one: NodeRef, other: NodeRef) -> bool:
    return one.node_id == other.node_id and one.incarnation == other.incarnation
