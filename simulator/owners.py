"""A simulated node's links to page owners, as `node.peers` keeps them: greeted before used."""

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from node.core import Event, FromNode, NodeLost
from node.peers import GREETING_S, HELLO_S, SILENT_S
from simulator.network import Link, Network
from simulator.process import Process
from tandem.messages.common import NodeRef
from tandem.messages.handoff import OwnerRefused, OwnerWelcome, WriterHello


@dataclass(slots=True, eq=False)
class _Owner:
    node: NodeRef
    link: Link
    heard_at: float
    is_open: bool = False
    waiting: list[msgspec.Struct] = field(default_factory=list)


class Owners:
    """Links by node id; a node that came back as another incarnation replaces its old link."""

    def __init__(
        self,
        process: Process,
        network: Network,
        identity: bytes,
        *,
        hello: Callable[[], WriterHello],
        open_owner: Callable[[OwnerWelcome], str | None],
        close_owner: Callable[[str], None],
        offer: Callable[[Event], None],
    ) -> None:
        self._process = process
        self._network = network
        self._identity = identity
        self._hello = hello
        self._open_owner = open_owner
        self._close_owner = close_owner
        self._offer = offer
        self._owners: dict[str, _Owner] = {}

    def send(self, node: NodeRef, message: msgspec.Struct) -> None:
        """Send, or keep until the owner's welcome."""
        owner = self._owners.get(node.node_id)
        if owner is not None and owner.node.incarnation != node.incarnation:
            if owner.node.epoch > node.epoch:
                return
            self.close(owner.node, "the node came back as another process")
            owner = None
        if owner is None:
            owner = self._open(node)
        if owner.is_open:
            self._network.send(owner.link, message)
        else:
            owner.waiting.append(message)

    def close(self, node: NodeRef, reason: str) -> None:
        """Give a link up; its transfers fail."""
        owner = self._owners.pop(node.node_id, None)
        if owner is not None:
            owner.link.is_open = False
            self._close_owner(node.node_id)
            self._offer(NodeLost(owner.node, reason))

    def _open(self, node: NodeRef) -> _Owner:
        link = self._network.dial(
            self._process,
            self._identity,
            node.control_address,
            lambda message: self._receive(owner, message),
        )
        owner = _Owner(node, link, self._process.now)
        self._owners[node.node_id] = owner
        self._greet(owner)
        return owner

    def _greet(self, owner: _Owner) -> None:
        if not owner.link.is_open:
            return
        if self._process.now - owner.heard_at > SILENT_S:
            self.close(owner.node, f"{owner.node.node_id} is silent")
            return
        self._network.send(owner.link, self._hello())
        self._process.after(GREETING_S if owner.is_open else HELLO_S, self._greet, owner)

    def _receive(self, owner: _Owner, message: msgspec.Struct) -> None:
        owner.heard_at = self._process.now
        if isinstance(message, OwnerWelcome):
            self._welcomed(owner, message)
        elif isinstance(message, OwnerRefused):
            owner.waiting.clear()
            self._offer(NodeLost(owner.node, message.reason))
        else:
            self._offer(FromNode(owner.node.node_id, message))

    def _welcomed(self, owner: _Owner, welcome: OwnerWelcome) -> None:
        if welcome.incarnation != owner.node.incarnation:
            self._process.clock.reach("another process answers at an owner's address")
            self.close(owner.node, "another process answers at its address")
            return
        if owner.is_open:
            return
        problem = self._open_owner(welcome)
        if problem is not None:
            owner.waiting.clear()
            self._offer(NodeLost(owner.node, problem))
            return
        owner.is_open = True
        for message in owner.waiting:
            self._network.send(owner.link, message)
        owner.waiting.clear()
