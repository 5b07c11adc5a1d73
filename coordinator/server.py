"""The coordinator's shell: one ROUTER for nodes, gateways and operators, a clock, the log."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

import zmq.asyncio

from coordinator.actions import Action, Note, Send
from coordinator.config import CoordinatorConfig
from coordinator.core import Coordinator, FromPeer
from tandem.codec import ProtocolError
from tandem.event_log import open_log, record
from tandem.keys import COORDINATOR
from tandem.messages.membership import FromNode, FromOperator
from tandem.messages.placement import FromGateway
from tandem.service import run_until
from tandem.sockets import Server, keyring_or_loopback

TICK_S = 0.2
ALLOWED = {"node": FromNode, "gateway": FromGateway, "operator": FromOperator}
logger = logging.getLogger(__name__)


async def serve(
    config: CoordinatorConfig, *, stop: asyncio.Event, on_ready: Callable[[str], None]
) -> None:
    """Serve until `stop` is set; `on_ready` gets the address. Raises ValueError for bad config."""
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
    try:
        on_ready(server.bind(config.host, config.port))
        await run_until(stop, _receive(server, core), _tick(server, core))
    finally:
        if log is not None:
            log.close()
        server.close()
        context.term()


async def _receive(server: Server[FromPeer], core: Coordinator) -> None:
    while True:
        peer, message = await server.receive()
        if isinstance(message, ProtocolError):
            core.num_dropped += 1
            logger.debug("dropped a message of %r: %s", peer, message)
            continue
        try:
            execute(server, core.handle(peer, message, time.monotonic()))
        except Exception:  # one message must not end everybody's service
            core.num_dropped += 1
            logger.exception("cannot handle a %s of %r", type(message).__name__, peer)


async def _tick(server: Server[FromPeer], core: Coordinator) -> None:
    while True:
        await asyncio.sleep(TICK_S)
        execute(server, core.tick(time.monotonic()))


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
