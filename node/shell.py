"""The I/O thread of a node: control sockets on asyncio, membership, drain. Decides nothing.

Messages become events for the step loop; its actions become messages and bulk requests.
"""

import asyncio
import logging
import threading
import time
from typing import Any

from node.actions import NodeAction, Reply, SendToNode
from node.core import Admitted, Event, FromPeer, GatewaySilent, NodeLost
from node.loop import StepLoop
from node.membership import Joined, Membership, TurnedAway
from node.peers import Owners, PageExchange
from tandem.codec import ProtocolError
from tandem.messages.handoff import FromWriter, Reserve, WriterHello
from tandem.messages.membership import ToNode
from tandem.messages.serving import FromGatewayToNode, PeerBeat
from tandem.service import run_until
from tandem.sockets import Link, Server

TICK_S = 0.1
INSIST_S = 0.05
GATEWAY_SILENT_S = 10.0
GATEWAY_DEAD_S = 30.0
log = logging.getLogger("tandem.node")


class NodeShell:
    """Connects a step loop with the world until told to stop. Build it inside the event loop."""

    def __init__(
        self,
        server: Server[Any],
        coordinator: Link[Any],
        *,
        membership: Membership,
        owners: Owners,
        exchange: PageExchange,
    ) -> None:
        self._server = server
        self._coordinator = coordinator
        self._membership = membership
        self._owners = owners
        self._exchange = exchange
        self._stopped = asyncio.Event()
        self._event_loop = asyncio.get_running_loop()
        self._steps: StepLoop | None = None
        self._draining = False
        self._gateways_heard_at: dict[bytes, float] = {}
        self._silent: set[bytes] = set()
        self.num_unwelcome = 0
        self.error: str | None = None

    def attach(self, steps: StepLoop) -> None:
        """The step loop to feed; it exists after the shell, whose `post` it needs."""
        self._steps = steps

    def post(self, actions: list[NodeAction]) -> None:
        """Execute what the core asked for. Called by the step thread."""
        messages = []
        for action in actions:
            if isinstance(action, Reply | SendToNode):
                messages.append(action)
            else:
                self._exchange.submit(action)
        if messages:
            self._event_loop.call_soon_threadsafe(self._send, messages)

    def failed(self, error: BaseException) -> None:
        """A thread died: the node is of no use any more. Called by the step or bulk thread."""
        name = threading.current_thread().name
        self._event_loop.call_soon_threadsafe(self._stop, f"the {name} thread failed: {error!r}")

    def _send(self, actions: list[Reply | SendToNode]) -> None:
        for action in actions:
            try:
                match action:
                    case Reply(peer, message):
                        self._server.send(peer, message)
                    case SendToNode(node, message):
                        self._owners.send(node, message)
            except ValueError as error:  # over the limits, or an address that is none
                log.error("cannot send a %s: %s", type(action.message).__name__, error)
                if isinstance(action, SendToNode):
                    self.insist(NodeLost(action.node, str(error)))

    def _stop(self, error: str | None) -> None:
        self.error = self.error or error
        self._stopped.set()

    def _offer(self, event: Event) -> None:
        assert self._steps is not None
        if not self._steps.offer(event):
            log.warning("event queue full, %s dropped; its sender resends", type(event).__name__)

    def insist(self, event: Event) -> None:
        """Offer an event that nobody would repeat until the queue takes it."""
        assert self._steps is not None
        if not self._steps.offer(event):
            self._event_loop.call_later(INSIST_S, self.insist, event)

    async def run(self, joined: asyncio.Event) -> None:
        """Serve until stopped; `joined` is set at the first admission."""
        try:
            await run_until(
                self._stopped,
                self._serve_peers(),
                self._serve_coordinator(joined),
                self._keep_membership(),
            )
        finally:
            self._owners.close_all()

    async def drain(self, patience_s: float) -> bool:
        """Take no new work, wait for what runs, say goodbye; False where something is left."""
        assert self._steps is not None
        self._draining = True
        ends_at = time.monotonic() + patience_s
        while time.monotonic() < ends_at and not self._steps.is_idle:  # noqa: ASYNC110  a thread's
            await asyncio.sleep(TICK_S)
        is_clean = self._steps.is_idle
        if self._membership.epoch:
            self._coordinator.send(self._membership.goodbye())
            await asyncio.sleep(TICK_S)  # let the socket's thread put it on the wire
        self._stop(None)
        return is_clean

    async def _serve_peers(self) -> None:
        while True:
            peer, message = await self._server.receive()
            if isinstance(message, ProtocolError):
                log.warning("dropped a message of %r: %s", peer[:64], message)
            elif isinstance(message, WriterHello):
                self._server.send(peer, self._exchange.answer(peer, message))
            elif isinstance(message, Reserve) and not self._exchange.is_admitted(peer):
                self.num_unwelcome += 1  # it greets again, and asks again
            elif isinstance(message, FromWriter):
                self._offer(FromPeer(peer, message))
            else:
                self._gateways_heard_at[peer] = time.monotonic()
                if not isinstance(message, PeerBeat):
                    self._offer(FromPeer(peer, message))

    async def _serve_coordinator(self, joined: asyncio.Event) -> None:
        async for message in self._coordinator.messages():
            outcome = self._membership.handle(message, time.monotonic())
            if isinstance(outcome, Joined):
                log.info("admitted under epoch %d", outcome.epoch)
                self._owners.epoch = outcome.epoch
                self.insist(Admitted(outcome.epoch))
                joined.set()
            elif isinstance(outcome, TurnedAway):
                self._stop(f"the coordinator refused this node: {outcome.reason}")

    async def _keep_membership(self) -> None:
        assert self._steps is not None
        while True:
            message = self._membership.due(
                time.monotonic(), self._steps.load(), draining=self._draining
            )
            if message is not None:
                self._coordinator.send(message)
            self._note_silent_gateways(time.monotonic())
            await asyncio.sleep(TICK_S)

    def _note_silent_gateways(self, now: float) -> None:
        """Gateways beat every second: the silent end, and are forgotten when silent for longer."""
        for peer, heard_at in list(self._gateways_heard_at.items()):
            is_dead = now - heard_at > GATEWAY_DEAD_S
            if is_dead or (now - heard_at > GATEWAY_SILENT_S and peer not in self._silent):
                log.warning(
                    "gateway %s silent for %.0f s", peer.decode(errors="replace"), now - heard_at
                )
                self._silent.add(peer)
                self.insist(GatewaySilent(peer, is_dead))
            if is_dead:
                del self._gateways_heard_at[peer]
            if is_dead or now - heard_at <= GATEWAY_SILENT_S:
                self._silent.discard(peer)


PEER_MESSAGES = FromGatewayToNode | FromWriter
COORDINATOR_MESSAGES = ToNode
