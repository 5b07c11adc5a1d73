"""The gateway's links to nodes: dialled when first needed, one per node, with a beat per second."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import zmq.asyncio

from tandem.keys import Keyring
from tandem.messages.common import NodeRef
from tandem.messages.serving import Cancel, FromNodeToGateway, PeerBeat
from tandem.sockets import Link

logger = logging.getLogger(__name__)
Receive = Callable[[NodeRef, msgspec.Struct], None]


@dataclass(slots=True)
class _Entry:
    node: NodeRef
    link: Link[Any]
    task: asyncio.Task[None]


class NodeLinks:
    """Links by node id. A node that came back as another process gets a new one.

    With `keys` a node must have the key of its name.
    """

    def __init__(
        self,
        context: zmq.asyncio.Context,
        *,
        identity: bytes,
        beat: PeerBeat,
        receive: Receive,
        keys: Keyring | None = None,
    ) -> None:
        self._context = context
        self._identity = identity
        self._beat = beat
        self._receive = receive
        self._keys = keys
        self._entries: dict[str, _Entry] = {}
        self._complaints: dict[str, str] = {}  # what the log says of nodes that cannot be dialled

    def send(self, node: NodeRef, message: msgspec.Struct) -> None:
        """Send if possible; what is lost is resent by protocol."""
        entry = self._entry(node, message)
        if entry is None:
            return
        try:
            entry.link.send(message)
        except ValueError as error:
            logger.error("cannot send to %s: %s", node.node_id, error)

    def _entry(self, node: NodeRef, message: msgspec.Struct) -> _Entry | None:
        known = self._entries.get(node.node_id)
        if known is not None:
            same = (node.incarnation, node.control_address)
            if (known.node.incarnation, known.node.control_address) == same:
                known.node = node if node.epoch > known.node.epoch else known.node
                return known
            if known.node.epoch >= node.epoch:
                # The past of a node that came back. At the same address it may have heard commands
                # that were meant for its predecessor, so it must hear their cancels.
                is_heir = known.node.control_address == node.control_address
                return known if is_heir and isinstance(message, Cancel) else None
            self._drop(self._entries.pop(node.node_id))
        return self._open(node)

    def _open(self, node: NodeRef) -> _Entry | None:
        # Two links to one address would share an identity: answers come over the later one only.
        for rival in [e.node for e in self._entries.values()]:
            if rival.control_address == node.control_address:
                if rival.epoch > node.epoch:
                    return None
                self._drop(self._entries.pop(rival.node_id))
        try:
            link: Link[Any] = Link(
                self._context,
                FromNodeToGateway,
                identity=self._identity,
                address=node.control_address,
                keys=self._keys,
                server=f"node/{node.node_id}",
            )
        except ValueError as error:
            if self._complaints.get(node.node_id) != str(error):  # every resend comes here
                logger.error("node %s: %s", node.node_id, error)
                self._complaints[node.node_id] = str(error)
            return None
        self._complaints.pop(node.node_id, None)
        link.send(self._beat)
        task = asyncio.create_task(self._listen(node.node_id, link))
        entry = self._entries[node.node_id] = _Entry(node, link, task)
        return entry

    async def _listen(self, node_id: str, link: Link[Any]) -> None:
        async for message in link.messages():
            self._receive(self._entries[node_id].node, message)

    def beat_all(self) -> None:
        """Renew this gateway's lease at every linked node."""
        for entry in self._entries.values():
            entry.link.send(self._beat)

    def close(self, node_id: str, epoch: int) -> None:
        """A node is down up to this epoch: hang up."""
        entry = self._entries.get(node_id)
        if entry is not None and entry.node.epoch <= epoch:
            self._drop(self._entries.pop(node_id))

    def _drop(self, entry: _Entry) -> None:
        entry.task.cancel()
        entry.link.close()

    def close_all(self) -> None:
        """Hang up everywhere."""
        for entry in self._entries.values():
            self._drop(entry)
        self._entries.clear()
