"""The coordinator's shell: one ROUTER for nodes, gateways and operators, a clock, the log."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

import zmq.asyncio

from coordinator.actions import Action, Note, Send, TurnedAway
from coordinator.config import CoordinatorConfig
from coordinator.core import Coordinator, FromPeer
from coordinator.dashboard.shell import Dashboard
from tandem.codec import ProtocolError
from tandem.event_log import open_log, record
from tandem.keys import COORDINATOR
from tandem.messages.membership import (
    DrainAnswer,
    DrainMember,
    FromNode,
    FromOperator,
    SetWeights,
    WeightsAnswer,
)
from tandem.messages.placement import FromGateway
from tandem.service import run_until
from tandem.sockets import Server, keyring_or_loopback

TICK_S = 0.2
DASHBOARD = b"operator/dashboard"  # as whom the dashboard's orders are answered
ALLOWED = {"node": FromNode, "gateway": FromGateway, "operator": FromOperator}
logger = logging.getLogger(__name__)


async def serve(
    config: CoordinatorConfig,
    *,
    stop: asyncio.Event,
    on_ready: Callable[[str], None],
    on_dashboard: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve until `stop` is set; `on_ready` gets the address, then `on_dashboard` the dashboard's.

    Raises ValueError for bad config.
    """
    keys = keyring_or_loopback(
        config.keys,
        *COORDINATOR,
        host=config.host,
        allow_unauthenticated=config.allow_unauthenticated,
    )
    incarnation, now = int(time.time() * 1000), time.monotonic()
    core = Coordinator(config, incarnation=incarnation, now=now)
    built_from = (config, incarnation, now)
    log = open_log(config.event_log, role="coordinator", name="coordinator", built_from=built_from)
    core = record(core, log, ("handle", "tick"))
    context = zmq.asyncio.Context()
    server: Server[FromPeer] = Server(context, FromPeer, keys=keys, allowed=ALLOWED)
    desk = Desk(core, server)
    try:
        if config.dashboard_port >= 0:
            desk.dashboard = Dashboard(config, core, desk.order)
        on_ready(server.bind(config.host, config.port))
        if desk.dashboard is None:
            await run_until(stop, desk.receive(), desk.tick())
        else:
            on_dashboard(desk.dashboard.address)
            await run_until(stop, desk.receive(), desk.tick(), desk.dashboard.run())
    finally:
        if desk.dashboard is not None:
            await desk.dashboard.close()
        if log is not None:
            log.close()
        server.close()
        context.term()


class Desk:
    """Brings messages and the time to the core, and executes what it answers."""

    def __init__(self, core: Coordinator, server: Server[FromPeer]) -> None:
        self._core = core
        self._server = server
        self.dashboard: Dashboard | None = None

    async def receive(self) -> None:
        """Answer messages, for ever."""
        while True:
            peer, message = await self._server.receive()
            if isinstance(message, ProtocolError):
                self._core.num_dropped += 1
                logger.debug("dropped a message of %r: %s", peer, message)
                continue
            try:
                execute(self._server, self._handle(peer, message))
            except Exception:  # one message must not end everybody's service
                self._core.num_dropped += 1
                logger.exception("cannot handle a %s of %r", type(message).__name__, peer)

    async def tick(self) -> None:
        """Let the core look at the time, for ever."""
        while True:
            await asyncio.sleep(TICK_S)
            actions = self._core.tick(time.monotonic())
            execute(self._server, actions)
            if self.dashboard is not None:
                self.dashboard.ticked(actions)

    def order(self, message: DrainMember | SetWeights) -> DrainAnswer | WeightsAnswer:
        """An operator's order that came by the dashboard, and the answer to it."""
        actions = self._handle(DASHBOARD, message)
        mine = [a.message for a in actions if isinstance(a, Send) and a.peer == DASHBOARD]
        execute(self._server, [a for a in actions if getattr(a, "peer", b"") != DASHBOARD])
        (answer,) = mine
        assert isinstance(answer, DrainAnswer | WeightsAnswer), "orders are answered so"
        return answer

    def _handle(self, peer: bytes, message: FromPeer) -> list[Action]:
        actions = self._core.handle(peer, message, time.monotonic())
        if self.dashboard is not None:
            self.dashboard.handled(message, actions)
        return actions


def execute(server: Server[FromPeer], actions: Iterable[Action]) -> None:
    """Send what is to be sent (peers ask again where that fails) and log what happened."""
    for action in actions:
        match action:
            case Send(peer, message):
                try:
                    server.send(peer, message)
                except ValueError as error:
                    logger.error("cannot answer %r: %s", peer, error)
            case Note(text):
                logger.info("%s", text)
            case TurnedAway():
                pass  # for the dashboard and metrics
