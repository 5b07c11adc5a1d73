"""This node's own links to the page owners that it writes to: dialled on demand, greeted first.

Messages wait until the owner has welcomed the writer, and the pages' transport is open.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
import zmq.asyncio

from node.core import Event, FromNode, NodeLost
from tandem.keys import Keyring
from tandem.messages.common import NodeRef
from tandem.messages.handoff import FromOwner, OwnerRefused, OwnerWelcome, WriterHello
from tandem.messages.membership import LinkReport, NodeLoad
from tandem.sockets import Link, peer_identity

HELLO_S = 1.0
GREETING_S = 3.0  # a link that is open is greeted too: the answer shows that the owner lives
SILENT_S = 15.0
MAX_WAITING = 10_000
log = logging.getLogger("tandem.node")


class PageExchange(Protocol):
    """The node's bulk side: who may exchange pages with it, and the thread that moves them."""

    def hello(self, epoch: int, chosen: str | None = None) -> WriterHello:
        """How this node introduces itself to a page owner, with the transport that it will use."""

    def answer(self, writer: bytes, hello: WriterHello) -> msgspec.Struct:
        """How this node, as an owner, answers a writer."""

    def is_admitted(self, writer: bytes) -> bool:
        """Whether this node, as an owner, confirmed the writer's transport."""

    def open_owner(self, welcome: OwnerWelcome) -> str:
        """Open the best of the owner's offers; its name. ValueError with all reasons if none."""

    def links(self) -> tuple[LinkReport, ...]:
        """How each owner is reached; at most 64."""

    def close_owner(self, node_id: str) -> None:
        """Give an owner's pool up: unanswered writes fail, its mapping or connection goes."""

    def submit(self, request: Any) -> None:  # noqa: ANN401  the exchange knows its requests
        """Hand a bulk request to the thread that moves pages."""

    def close(self) -> None:
        """End the thread and release memory, sockets and descriptors."""


@dataclass(slots=True)
class _Owner:
    node: NodeRef
    link: Link[Any]
    task: asyncio.Task[None] | None = None
    chosen: str | None = None  # the transport that it was told
    is_open: bool = False  # it confirmed that
    heard_at: float = field(default_factory=time.monotonic)
    waiting: list[msgspec.Struct] = field(default_factory=list)


class Owners:
    """Links by node id; a node that came back as another incarnation replaces its old link."""

    def __init__(
        self,
        context: zmq.asyncio.Context,
        exchange: PageExchange,
        *,
        node_id: str,
        incarnation: int,
        offer: Callable[[Event], bool],
        insist: Callable[[Event], None],
        load: Callable[[], NodeLoad],
        keys: Keyring | None = None,
    ) -> None:
        self._context = context
        self._keys = keys
        self._exchange = exchange
        self._identity = peer_identity("node", node_id, incarnation)
        self._offer = offer
        self._insist = insist
        self._load = load
        self._owners: dict[str, _Owner] = {}
        self.epoch = 0

    def send(self, node: NodeRef, message: msgspec.Struct) -> None:
        """Send, or keep until the owner's welcome."""
        owner = self._owners.get(node.node_id)
        if owner is not None and owner.node.incarnation != node.incarnation:
            if owner.node.epoch > node.epoch:
                return  # the past of a node that came back
            self.close(owner.node, "the node came back as another process")
            owner = None
        if owner is None:
            owner = self._open(node)
        if owner.is_open:
            owner.link.send(message)
        elif len(owner.waiting) < MAX_WAITING:
            owner.waiting.append(message)  # what does not fit is resent by its machine

    def close(self, node: NodeRef, reason: str) -> None:
        """Give a link up; its transfers fail."""
        owner = self._owners.pop(node.node_id, None)
        if owner is None:
            return
        if owner.task is not None:
            owner.task.cancel()
        owner.link.close()
        self._exchange.close_owner(node.node_id)
        self._insist(NodeLost(owner.node, reason))

    def close_all(self) -> None:
        """Close every link."""
        for owner in list(self._owners.values()):
            self.close(owner.node, "this node stops")

    def _open(self, node: NodeRef) -> _Owner:
        link: Link[Any] = Link(
            self._context,
            FromOwner,
            identity=self._identity,
            address=node.control_address,
            keys=self._keys,
            server=f"node/{node.node_id}",
        )
        owner = self._owners[node.node_id] = _Owner(node, link)
        owner.task = asyncio.create_task(self._serve(owner))
        return owner

    async def _serve(self, owner: _Owner) -> None:
        greeting = asyncio.create_task(self._greet(owner))
        try:
            async for message in owner.link.messages():
                owner.heard_at = time.monotonic()
                if isinstance(message, OwnerWelcome):
                    await self._welcomed(owner, message)
                elif isinstance(message, OwnerRefused):
                    self._give_up(owner, message.reason)
                else:
                    self._offer(FromNode(owner.node.node_id, message))
        except Exception:  # one owner's link must not end without anybody knowing
            log.exception("the link to %s failed", owner.node.node_id)
            self.close(owner.node, "its link failed")
        finally:
            greeting.cancel()

    async def _greet(self, owner: _Owner) -> None:
        while True:
            owner.link.send(self._hello(owner))
            await asyncio.sleep(GREETING_S if owner.is_open else HELLO_S)
            silent_s = time.monotonic() - owner.heard_at
            if silent_s > SILENT_S:
                node = owner.node
                self.close(node, f"{node.node_id} at {node.control_address} is silent")
                return

    async def _welcomed(self, owner: _Owner, welcome: OwnerWelcome) -> None:
        if welcome.incarnation != owner.node.incarnation:
            reason = f"another process answers at {owner.node.control_address}"
            self.close(owner.node, reason)
            return
        if owner.is_open:
            return  # a repeated welcome
        if owner.chosen is None:
            await self._choose(owner, welcome)
        elif welcome.transport == owner.chosen:
            owner.is_open = True
            for message in owner.waiting:
                owner.link.send(message)
            owner.waiting.clear()

    async def _choose(self, owner: _Owner, welcome: OwnerWelcome) -> None:
        """Measure the owner's offers, away from this thread: heartbeats must not wait for that."""
        try:
            owner.chosen = await asyncio.to_thread(self._exchange.open_owner, welcome)
        except ValueError as error:
            self._give_up(owner, str(error))
            return
        owner.link.send(self._hello(owner))

    def _hello(self, owner: _Owner) -> WriterHello:
        load = self._load()
        return msgspec.structs.replace(
            self._exchange.hello(self.epoch, owner.chosen),
            has_work=load.has_work,
            step_age_s=load.step_age_s,
            predicted_step_s=load.predicted_step_s,
        )

    def _give_up(self, owner: _Owner, reason: str) -> None:
        """Fail what waits for it, forget the choice; the next welcome begins anew."""
        owner.waiting.clear()
        owner.is_open, owner.chosen = False, None
        self._exchange.close_owner(owner.node.node_id)
        self._insist(NodeLost(owner.node, reason))
