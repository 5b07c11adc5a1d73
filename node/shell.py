"""The I/O thread of a node: control sockets on asyncio, membership, drain. Decides nothing.

Messages become events for the step loop; its actions become messages and bulk requests.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from node.actions import CacheChanged, NodeAction, NodeNotice, Reply, SendToNode
from node.core import (
    Admitted,
    CacheWanted,
    Event,
    FromPeer,
    GatewaySilent,
    NodeLost,
    RolesChanged,
)
from node.device import Schemas
from node.drain import Drain
from node.loop import StepLoop
from node.membership import (
    DrainWanted,
    Forgotten,
    Joined,
    Membership,
    Outcome,
    RolesOrdered,
    SnapshotWanted,
    TurnedAway,
)
from node.peers import Owners, PageExchange
from node.schema_desk import SchemaDesk
from tandem.codec import ProtocolError
from tandem.messages.handoff import FromWriter, Reserve, WriterHello
from tandem.messages.membership import NodeLoad, PageCounts, ToNode
from tandem.messages.serving import FromGatewayToNode, PeerBeat
from tandem.service import log_stats, run_until
from tandem.sockets import Link, Server
from tandem.stats_line import Sample

TICK_S = 0.1
INSIST_S = 0.05
GATEWAY_SILENT_S = 10.0
GATEWAY_DEAD_S = 30.0
log = logging.getLogger("tandem.node")


class NodeShell:
    """Connects a step loop with the world until told to stop. Build it inside the event loop.

    `drain_s`: how long a drain may take. `device` is named in the log. `watch_cache` hears what
    entered and left the prefix cache.
    """

    def __init__(
        self,
        server: Server[Any],
        coordinator: Link[Any],
        *,
        membership: Membership,
        owners: Owners,
        exchange: PageExchange,
        drain_s: float,
        schemas: Schemas | None = None,
        device: str = "cpu",
        watch_cache: Callable[[CacheChanged], None] = lambda change: None,
    ) -> None:
        self._server = server
        self._coordinator = coordinator
        self._membership = membership
        self._owners = owners
        self._exchange = exchange
        self._watch_cache = watch_cache
        self._stopped = asyncio.Event()
        self._event_loop = asyncio.get_running_loop()
        self._steps: StepLoop | None = None
        self._schemas = SchemaDesk(
            schemas,
            take=lambda peer, command: self._offer(FromPeer(peer, command)),
            answer=server.send,
        )
        self._drain_s = drain_s
        self._drain: asyncio.Task[None] | None = None
        self._is_lapsed = False
        self._device = device
        self._gateways_heard_at: dict[bytes, float] = {}
        self._silent: set[bytes] = set()
        self.num_unwelcome = 0
        self.error: str | None = None

    def attach(self, steps: StepLoop) -> None:
        """The step loop to feed; it exists after the shell, whose `post` it needs."""
        self._steps = steps

    def post(self, actions: list[NodeAction]) -> None:
        """Execute what the core asked for. Called by the step thread."""
        messages: list[Reply | SendToNode | CacheChanged] = []
        for action in actions:
            if isinstance(action, Reply | SendToNode | CacheChanged):
                messages.append(action)
            elif isinstance(action, NodeNotice):
                log.warning("%s", action.text)
            else:
                self._exchange.submit(action)
        if messages:
            self._event_loop.call_soon_threadsafe(self._send, messages)

    def failed(self, error: BaseException) -> None:
        """A thread died: the node is of no use any more. Called by the step or bulk thread."""
        name = threading.current_thread().name
        self._event_loop.call_soon_threadsafe(self._stop, f"the {name} thread failed: {error!r}")

    def _send(self, actions: list[Reply | SendToNode | CacheChanged]) -> None:
        for action in actions:
            if isinstance(action, CacheChanged):
                self._membership.cache_changed(action)
                self._watch_cache(action)
                continue
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
        steps = self._steps
        assert steps is not None
        try:
            await run_until(
                self._stopped,
                self._serve_peers(),
                self._serve_coordinator(joined),
                self._keep_membership(),
                log_stats(log, lambda: sample_of(steps.load()), self._device),
            )
        finally:
            await self._schemas.close()
            self._owners.close_all()

    def start_drain(self, reason: str) -> bool:
        """Finish what is here, take no new work, then leave; False where that has begun before."""
        if self._drain is not None:
            return False
        log.info("draining for up to %g s: %s", self._drain_s, reason)
        self._drain = asyncio.create_task(self._leave_when_empty())
        return True

    async def _leave_when_empty(self) -> None:
        assert self._steps is not None
        now = time.monotonic()
        drain = Drain(now, self._drain_s)
        self._membership.hurry(now)
        while not drain.is_over(
            now,
            is_idle=self._steps.is_idle,
            is_known=self._membership.is_drain_known(now),
        ):
            if drain.is_report_due(now):
                log.info("left to do: %s", describe_work(self._steps.load()))
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
        problem = None
        if not self._steps.is_idle:
            work = describe_work(self._steps.load())
            problem = f"after {self._drain_s:g} s of draining there was left: {work}"
        if self._membership.epoch:
            self._coordinator.send(self._membership.goodbye())
            await asyncio.sleep(TICK_S)  # let the socket's thread put it on the wire
        self._stop(problem)

    async def _serve_peers(self) -> None:
        while True:
            peer, message = await self._server.receive()
            if isinstance(message, ProtocolError):
                log.warning("dropped a message of %r: %s", peer[:64], message)
            elif isinstance(message, WriterHello):
                self._server.send(peer, self._exchange.answer(peer, message))
                self._offer(FromPeer(peer, message))  # by its epoch it may replace an older process
            elif isinstance(message, Reserve) and not self._exchange.is_admitted(peer):
                self.num_unwelcome += 1  # it greets again, and asks again
            elif isinstance(message, FromWriter):
                self._offer(FromPeer(peer, message))
            else:
                self._gateways_heard_at[peer] = time.monotonic()
                if self._schemas.is_for(message):
                    self._schemas.handle(peer, message)
                elif not isinstance(message, PeerBeat):
                    self._offer(FromPeer(peer, message))

    async def _serve_coordinator(self, joined: asyncio.Event) -> None:
        async for message in self._coordinator.messages():
            for outcome in self._membership.handle(message, time.monotonic()):
                self._obey(outcome)
                if isinstance(outcome, Joined):
                    joined.set()

    def _obey(self, outcome: Outcome) -> None:
        match outcome:
            case Joined(epoch):
                log.info("admitted under epoch %d", epoch)
                self._owners.epoch = epoch
                self.insist(Admitted(epoch))
            case TurnedAway(reason):
                self._stop(f"the coordinator refused this node: {reason}")
            case Forgotten(reason):
                log.warning("the coordinator asks for a new hello: %s", reason)
            case SnapshotWanted():
                self.insist(CacheWanted())
            case RolesOrdered(weights):
                log.info("roles: prefill %g, decode %g", weights.prefill, weights.decode)
                self.insist(RolesChanged(weights))
            case DrainWanted():
                self.start_drain("an operator wants this node to leave")

    async def _keep_membership(self) -> None:
        assert self._steps is not None
        while True:
            now = time.monotonic()
            message = self._membership.due(
                now,
                self._steps.load(),
                draining=self._drain is not None,
                links=self._exchange.links(),
            )
            if message is not None:
                self._coordinator.send(message)
            self._note_lapse(now)
            self._note_silent_gateways(now)
            await asyncio.sleep(TICK_S)

    def _note_lapse(self, now: float) -> None:
        is_lapsed = self._membership.is_lapsed(now)
        if is_lapsed and not self._is_lapsed:
            log.warning("no answer from the coordinator for a lease; requests go on without it")
        elif self._is_lapsed and not is_lapsed:
            log.info("the coordinator answers again")
        self._is_lapsed = is_lapsed

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


def sample_of(load: NodeLoad) -> Sample:
    """The figures of the line that is logged every ten seconds."""
    num_pages = sum(getattr(load.pages, state) for state in PageCounts.__struct_fields__)
    num_held = num_pages - load.pages.free - load.pages.cached
    return Sample(
        num_prompt_tokens=load.num_prompt_tokens,
        num_output_tokens=load.num_tokens_out,
        num_running=load.num_decode_running,
        num_waiting=load.num_prefill_waiting + load.num_decode_waiting,
        num_cached_tokens=load.num_cached_tokens,
        kv_usage=num_held / num_pages if num_pages else 0.0,
    )


def describe_work(load: NodeLoad) -> str:
    """What a draining node waits for, in words."""
    others = load.num_prefill_waiting + load.num_decode_running + load.num_decode_waiting
    return (
        f"{load.num_prefill_waiting} prompts, {load.num_decode_running} decoding, "
        f"{load.num_decode_waiting} waiting to decode, {load.num_transfers} transfers, "
        f"{max(0, load.num_requests - others - load.num_transfers)} unacknowledged"
    )


PEER_MESSAGES = FromGatewayToNode | FromWriter
ALLOWED = {"gateway": FromGatewayToNode, "node": FromWriter}  # by kind of key
COORDINATOR_MESSAGES = ToNode
