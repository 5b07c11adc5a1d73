"""What the coordinator's core asks of its shell."""

from dataclasses import dataclass

import msgspec


@dataclass(frozen=True, slots=True)
class Send:
    """Send to a peer by its routing identity."""

    peer: bytes
    message: msgspec.Struct


@dataclass(frozen=True, slots=True)
class Note:
    """Tell the operator: one line per change of membership."""

    text: str


Action = Send | Note
