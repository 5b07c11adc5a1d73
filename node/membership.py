"""How a node joins and stays: hello until admitted, heartbeats with a lease, rejoin. Pure.

The lease counts from when the last acknowledged heartbeat was *sent*, on this node's own clock. A
node whose lease lapsed goes on with what it has (gateways fence by epoch) and keeps beating: the
coordinator renews the lease, or has it say hello again, which gives it a higher epoch. Only the
highest incarnation of the coordinator is obeyed, and no epoch that is lower than an earlier one.
Of orders to change roles the highest (incarnation, number) counts, over epochs and coordinators;
heartbeats and hellos say which weights are in force.
"""

from dataclasses import dataclass

import msgspec

from node.actions import CacheChanged
from node.cache_feed import CacheFeed
from scheduling.liveness import is_wedged
from tandem.messages.membership import (
    Goodbye,
    Heartbeat,
    HeartbeatAck,
    LinkReport,
    NodeHello,
    NodeLoad,
    NodeRefused,
    NodeWelcome,
    Rejoin,
    RoleOrder,
    RoleWeights,
)

HELLO_S = 1.0
MAX_UNANSWERED = 100
LINKS_EVERY = 20  # heartbeats: one with them may be lost, or heard by an earlier coordinator


@dataclass(frozen=True, slots=True)
class Joined:
    """The coordinator admitted the node under this epoch."""

    epoch: int


@dataclass(frozen=True, slots=True)
class TurnedAway:
    """The coordinator refuses the node; trying again will not help."""

    reason: str


@dataclass(frozen=True, slots=True)
class Forgotten:
    """The coordinator does not know the node any more: it says hello again."""

    reason: str


@dataclass(frozen=True, slots=True)
class SnapshotWanted:
    """The coordinator has missed a change of the prefix cache."""


@dataclass(frozen=True, slots=True)
class DrainWanted:
    """An operator wants the node to leave; repeated until it has."""


@dataclass(frozen=True, slots=True)
class RolesOrdered:
    """The node shall have these weights from now on."""

    weights: RoleWeights


Outcome = Joined | TurnedAway | Forgotten | SnapshotWanted | DrainWanted | RolesOrdered


class Membership:
    """One node's standing with the coordinator."""

    def __init__(self, hello: NodeHello) -> None:
        self._hello = hello
        self._epoch = 0
        self._highest_epoch = 0
        self._coordinator_incarnation = 0
        self._sequence = 0
        self._heartbeat_s = HELLO_S
        self._lease_s = 0.0
        self._next_send_at = 0.0
        self._sent_at: dict[int, float] = {}
        self._lease_ends_at = 0.0
        self._feed = CacheFeed()
        self._snapshot_sequence = 0
        self._drain_sequence: int | None = None
        self._is_drain_acknowledged = False
        self._told_links: tuple[LinkReport, ...] = ()
        self._obeyed = (0, 0)  # the highest order: its coordinator's incarnation and its number
        self.num_dropped = 0

    @property
    def epoch(self) -> int:
        """The current epoch; zero while not admitted."""
        return self._epoch

    def is_lapsed(self, now: float) -> bool:
        """Whether the coordinator may have given this node up."""
        return self._epoch > 0 and now > self._lease_ends_at

    def is_drain_known(self, now: float) -> bool:
        """Whether nothing new is placed here: the coordinator knows of the drain, or is away."""
        return self._is_drain_acknowledged or self._epoch == 0 or self.is_lapsed(now)

    def handle(self, message: msgspec.Struct, now: float) -> list[Outcome]:
        """A message of the coordinator; what is late, repeated or of an older one is counted."""
        match message:
            case NodeWelcome() if self._is_news(message):
                return [self._admitted(message, now)]
            case NodeRefused(reason=reason) if not self._epoch:
                return [TurnedAway(reason)]
            case HeartbeatAck(epoch=epoch) if epoch == self._epoch:
                return self._acknowledged(message, now)
            case Rejoin(reason=reason) if self._epoch:
                self._heartbeat_s = HELLO_S
                self._next_send_at = now
                self._epoch = 0
                return [Forgotten(reason)]
        self.num_dropped += 1
        return []

    def _is_news(self, welcome: NodeWelcome) -> bool:
        if welcome.coordinator_incarnation < self._coordinator_incarnation:
            return False
        # While not admitted, the last epoch again: the coordinator had only thought us away.
        is_same = welcome.epoch == self._highest_epoch and not self._epoch
        return welcome.epoch > self._highest_epoch or is_same

    def _admitted(self, welcome: NodeWelcome, now: float) -> Joined:
        self._coordinator_incarnation = welcome.coordinator_incarnation
        self._epoch = self._highest_epoch = welcome.epoch
        self._heartbeat_s, self._lease_s = welcome.heartbeat_s, welcome.lease_s
        self._lease_ends_at = now + welcome.lease_s
        self._next_send_at = now
        self._sent_at.clear()
        self._feed.restart()
        self._drain_sequence, self._is_drain_acknowledged = None, False
        return Joined(welcome.epoch)

    def _acknowledged(self, ack: HeartbeatAck, now: float) -> list[Outcome]:
        outcomes = self._ordered(ack.roles, now)
        sent_at = self._sent_at.pop(ack.sequence, None)
        if sent_at is None:  # an order comes at once, with an acknowledgement that was told before
            self.num_dropped += not outcomes
            return outcomes
        self._lease_ends_at = max(self._lease_ends_at, sent_at + self._lease_s)
        if self._drain_sequence is not None and ack.sequence >= self._drain_sequence:
            self._is_drain_acknowledged = True
        if ack.wants_snapshot and self._is_snapshot_missing(ack.sequence):
            self._feed.restart()
            outcomes.append(SnapshotWanted())
        if ack.drain:
            outcomes.append(DrainWanted())
        return outcomes

    def _ordered(self, order: RoleOrder | None, now: float) -> list[Outcome]:
        """Take an order that is none of those obeyed before; it is told on at once."""
        if order is None or not (order.weights.prefill or order.weights.decode):
            return []
        number = (order.coordinator_incarnation, order.number)
        if number <= self._obeyed:
            return []
        self._obeyed = number
        self._hello = msgspec.structs.replace(self._hello, weights=order.weights)
        self._next_send_at = now  # a role is open once a heartbeat said so
        return [RolesOrdered(order.weights)]

    def _is_snapshot_missing(self, sequence: int) -> bool:
        """Whether none is awaited from the index, nor on its way since that heartbeat."""
        return not self._feed.is_waiting and sequence >= self._snapshot_sequence

    def cache_changed(self, change: CacheChanged) -> None:
        """News of the prefix cache, for the next heartbeat."""
        self._feed.changed(change)

    def hurry(self, now: float) -> None:
        """Let the next message go at once."""
        self._next_send_at = now

    def due(
        self, now: float, load: NodeLoad, *, draining: bool, links: tuple[LinkReport, ...] = ()
    ) -> msgspec.Struct | None:
        """The message to send now, if any."""
        if now < self._next_send_at:
            return None
        self._next_send_at = now + (self._heartbeat_s if self._epoch else HELLO_S)
        if not self._epoch:
            return None if is_wedged(load) else self._hello
        self._sequence += 1
        self._sent_at[self._sequence] = now
        self._sent_at.pop(self._sequence - MAX_UNANSWERED, None)
        if draining and self._drain_sequence is None:
            self._drain_sequence = self._sequence
        # While nobody answers, heartbeats may queue up: the cache waits until somebody does.
        cache = None if self.is_lapsed(now) else self._feed.take()
        if cache is not None and cache.is_snapshot:
            self._snapshot_sequence = self._sequence
        return Heartbeat(
            node_id=self._hello.node_id,
            incarnation=self._hello.incarnation,
            epoch=self._epoch,
            sequence=self._sequence,
            draining=draining,
            load=load,
            cache=cache,
            weights=self._hello.weights,
            links=self._news_of(links),
        )

    def _news_of(self, links: tuple[LinkReport, ...]) -> tuple[LinkReport, ...] | None:
        """What to say of links in this heartbeat."""
        if links == self._told_links and (self._sequence % LINKS_EVERY or not links):
            return None
        self._told_links = links
        return links

    def goodbye(self) -> Goodbye:
        """The last message of a drained node."""
        return Goodbye(
            node_id=self._hello.node_id, incarnation=self._hello.incarnation, epoch=self._epoch
        )
