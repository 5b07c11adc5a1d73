"""How a node joins and stays: hello until admitted, heartbeats with a lease, rejoin. Pure.

The lease counts from when the last acknowledged heartbeat was *sent*, on this node's own clock.
"""

from dataclasses import dataclass

import msgspec

from tandem.messages.membership import (
    Goodbye,
    Heartbeat,
    HeartbeatAck,
    NodeHello,
    NodeLoad,
    NodeRefused,
    NodeWelcome,
    Rejoin,
)

HELLO_S = 1.0


@dataclass(frozen=True, slots=True)
class Joined:
    """The coordinator admitted the node under this epoch."""

    epoch: int


@dataclass(frozen=True, slots=True)
class TurnedAway:
    """The coordinator refuses the node; trying again will not help."""

    reason: str


class Membership:
    """One node's standing with the coordinator."""

    def __init__(self, hello: NodeHello) -> None:
        self._hello = hello
        self._epoch = 0
        self._sequence = 0
        self._heartbeat_s = HELLO_S
        self._lease_s = 0.0
        self._next_send_at = 0.0
        self._sent_at: dict[int, float] = {}
        self._lease_ends_at = 0.0

    @property
    def epoch(self) -> int:
        """The current epoch; zero while not admitted."""
        return self._epoch

    def is_lapsed(self, now: float) -> bool:
        """Whether the coordinator may have given this node up."""
        return self._epoch > 0 and now > self._lease_ends_at

    def handle(self, message: msgspec.Struct, now: float) -> Joined | TurnedAway | None:
        """A message of the coordinator."""
        match message:
            case NodeWelcome(epoch=epoch) if epoch > self._epoch:
                self._epoch = epoch
                self._heartbeat_s, self._lease_s = message.heartbeat_s, message.lease_s
                self._lease_ends_at = now + message.lease_s
                self._next_send_at = now
                self._sent_at.clear()
                return Joined(epoch)
            case NodeRefused(reason=reason):
                return TurnedAway(reason)
            case HeartbeatAck(epoch=epoch, sequence=sequence) if epoch == self._epoch:
                sent_at = self._sent_at.pop(sequence, None)
                if sent_at is not None:
                    self._lease_ends_at = max(self._lease_ends_at, sent_at + self._lease_s)
            case Rejoin():
                # The epoch is kept: a coordinator that lost its memory issues a higher one.
                self._lease_ends_at = 0.0
                self._heartbeat_s = HELLO_S
                self._next_send_at = now
                self._epoch = 0
            case _:
                pass  # a welcome or acknowledgement of an older epoch
        return None

    def due(self, now: float, load: NodeLoad, *, draining: bool) -> msgspec.Struct | None:
        """The message to send now, if any."""
        if now < self._next_send_at:
            return None
        self._next_send_at = now + (self._heartbeat_s if self._epoch else HELLO_S)
        if not self._epoch:
            return self._hello
        self._sequence += 1
        self._sent_at[self._sequence] = now
        self._sent_at.pop(self._sequence - 100, None)
        return Heartbeat(
            node_id=self._hello.node_id,
            incarnation=self._hello.incarnation,
            epoch=self._epoch,
            sequence=self._sequence,
            draining=draining,
            load=load,
        )

    def goodbye(self) -> Goodbye:
        """The last message of a drained node."""
        return Goodbye(
            node_id=self._hello.node_id, incarnation=self._hello.incarnation, epoch=self._epoch
        )
