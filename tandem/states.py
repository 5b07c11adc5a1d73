"""The life of a request at its gateway: one table of states and legal transitions, and its drawing.

A new attempt (after a node died, refused or failed) leads back to PLACING; the three terminal
states are written by the gateway only, once.
"""

import enum


class RequestState(enum.Enum):
    """Where a request is. The value is the name that logs and diagrams show."""

    RECEIVED = "received"
    PLACING = "placing"
    PREFILLING = "prefilling"
    TRANSFERRING = "transferring"
    DECODING = "decoding"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"


_S = RequestState
_ENDS = frozenset({_S.FINISHED, _S.CANCELLED, _S.FAILED})

TRANSITIONS: dict[RequestState, frozenset[RequestState]] = {
    # Limits and deadlines may end a request before any node was asked for, and what is resumed
    # from another gateway may have been complete.
    _S.RECEIVED: frozenset({_S.PLACING}) | _ENDS,
    _S.PLACING: frozenset({_S.PREFILLING, _S.CANCELLED, _S.FAILED}),
    # Straight to DECODING: prefill ran on the decode node, or the early copy of token 0 was lost.
    _S.PREFILLING: frozenset({_S.TRANSFERRING, _S.DECODING, _S.PLACING}) | _ENDS,
    _S.TRANSFERRING: frozenset({_S.DECODING, _S.PLACING}) | _ENDS,
    _S.DECODING: frozenset({_S.PLACING}) | _ENDS,
    _S.FINISHED: frozenset(),
    _S.CANCELLED: frozenset(),
    _S.FAILED: frozenset(),
}


class IllegalTransition(AssertionError):
    """Our own bookkeeping is wrong; no input from outside leads here."""


def transition(current: RequestState, following: RequestState) -> RequestState:
    """`following`, where the table allows it. Raises IllegalTransition."""
    if following not in TRANSITIONS[current]:
        raise IllegalTransition(f"a request that is {current.value} cannot be {following.value}")
    return following


def is_terminal(state: RequestState) -> bool:
    """Whether nothing follows `state`."""
    return not TRANSITIONS[state]


def draw_mermaid() -> str:
    """The table as a Mermaid state diagram, in the order of the enum."""
    order = list(RequestState)
    lines = ["stateDiagram-v2", f"    [*] --> {order[0].value}"]
    for state in order:
        following = sorted(TRANSITIONS[state], key=order.index)
        lines += [f"    {state.value} --> {other.value}" for other in following]
        if not following:
            lines.append(f"    {state.value} --> [*]")
    return "\n".join(lines)
