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
from tandem.service import run_until
from tandem.sockets import Server, require_loopback

TICK_S = 0.2
logger = logging.getLogger(__name__)


async def serve(
    config: CoordinatorConfig, *, stop: asyncio.Event, on_ready: Callable[[str], None]
) -> None:
    """Serve until `stop` is set; `on_ready` gets the address. Raises ValueError for bad config."""
    if not config.allow_unauthenticated:
        require_loopback(config.host)
    core = Coordinator(config, incarnation=int(time.time() * 1000), now=time.monotonic())
    context = zmq.asyncio.Context()
    server: Server[FromPeer] = Server(context, FromPeer)
    try:
        on_ready(server.bind(config.host, config.port))
        await run_until(stop, _receive(server, core), _tick(server, core))
    finally:
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
