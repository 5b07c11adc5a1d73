"""What the coordinator's core asks of its shell."""

from dataclasses import dataclass
from typing import Literal

import msgspec

EventKind = Literal["decision", "member", "order", "request", "error"]


@dataclass(frozen=True, slots=True)
class Send:
    """Send to a peer by its routing identity."""

    peer: bytes
    message: msgspec.Struct


@dataclass(frozen=True, slots=True)
class Note:
    """Tell the operator: one line per change of membership, decision or order."""

    text: str
    kind: EventKind = "member"


@dataclass(frozen=True, slots=True)
class TurnedAway:
    """A gateway refused so many requests of a class (None: the default) by itself."""

    sla_class: str | None
    num_requests: int


Action = Send | Note | TurnedAway
