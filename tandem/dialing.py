"""When a link dials anew, and what is wrong while it has no connection. Pure.

Without keys libzmq reconnects by itself, but never after a handshake that broke the protocol. With
keys every new connection needs a new routing identity (the server may still hold the old one, and
libzmq would leave the newcomer unheard for good) and perhaps new keys: then we dial.
"""

from dataclasses import dataclass
from enum import Enum

FIRST_PAUSE_S = 0.05
LAST_PAUSE_S = 1.0
NUM_FAILURES_TOLD = 2  # one handshake fails where a server dies in the middle of it


class LinkEvent(Enum):
    """What the monitor of a socket reports."""

    SUCCEEDED = "handshake succeeded"
    REFUSED = "handshake refused"  # the server knows who we are, and does not want us
    BROKEN = "handshake broke the protocol"  # the other side expects another mechanism
    HUNG_UP = "handshake ended without a reason"  # a wrong server key, or a server that went
    DISCONNECTED = "disconnected"


@dataclass(slots=True)
class Dialing:
    """Of one link: events in, `is_due` and `trouble` out."""

    address: str
    own_name: str | None  # "node/a"; None without keys
    server_name: str | None
    num_failures: int = 0
    num_disconnections: int = 0
    due_at: float | None = None
    _pause_s: float = FIRST_PAUSE_S
    _last_failure: LinkEvent | None = None

    def take(self, event: LinkEvent, now: float) -> None:
        """Something happened to the connection."""
        if event is LinkEvent.SUCCEEDED:
            self.num_failures, self._last_failure = 0, None
            self._pause_s = FIRST_PAUSE_S
            return
        if event is LinkEvent.DISCONNECTED:
            self.num_disconnections += self.num_failures == 0
        else:
            self.num_failures += 1
            self._last_failure = event
        dials_itself = self.own_name is None and event in (
            LinkEvent.DISCONNECTED,
            LinkEvent.HUNG_UP,
        )
        if self.due_at is None and not dials_itself:
            self.due_at = now + self._pause_s
            self._pause_s = min(2 * self._pause_s, LAST_PAUSE_S)

    def is_due(self, now: float) -> bool:
        """Whether to dial now; then `dialled` is called."""
        return self.due_at is not None and now >= self.due_at

    def dialled(self) -> None:
        """The link has dialled."""
        self.due_at = None

    @property
    def trouble(self) -> str | None:
        """Why there is no connection, and what to do; None while nothing is known to be wrong."""
        if self.num_failures < NUM_FAILURES_TOLD or self._last_failure is None:
            return None
        if self.own_name is None:
            return f"the server at {self.address} requires keys: pass --keys FOLDER"
        if self._last_failure is LinkEvent.REFUSED:
            return (
                f"the server at {self.address} does not accept the key of {self.own_name}: copy "
                "the public part of the keys folder to its host, or check the kind of key"
            )
        return (
            f"the server at {self.address} has no keys, or not those of {self.server_name}: copy "
            "the public part of the keys folder to this host, or check the address"
        )
