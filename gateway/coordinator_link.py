"""A gateway's link to its coordinator: hellos out, welcomes and everything else in."""

import logging
import time
from collections.abc import Callable

import msgspec

from gateway.pool_view import PoolView
from gateway.zmq_clients import going_on
from tandem.messages.placement import (
    GatewayHello,
    GatewayRefused,
    GatewayWelcome,
    ToGatewayFromCoordinator,
)
from tandem.sockets import Link

logger = logging.getLogger(__name__)


class CoordinatorLink:
    """Keeps `pools` as the coordinator says. Lives on one event loop.

    `hello` says who this gateway is and how it is, `hear` gets every message but refusals, `leave`
    is called when an operator wants this gateway to stop.
    """

    def __init__(
        self,
        link: Link[ToGatewayFromCoordinator],
        pools: PoolView,
        *,
        hello: Callable[[], GatewayHello],
        hear: Callable[[ToGatewayFromCoordinator, float], None],
        leave: Callable[[], None],
    ) -> None:
        self._link = link
        self._pools = pools
        self._hello = hello
        self._hear = hear
        self._leave = leave

    async def listen(self, on_ready: Callable[[], None]) -> None:
        """Take what it says, for ever; `on_ready` is called at the first welcome.

        Raises ValueError where this gateway does not fit the deployment.
        """
        is_announced = False
        async for message in self._link.messages():
            if isinstance(message, GatewayRefused) and not is_announced:
                raise ValueError(f"the coordinator refuses this gateway: {message.reason}")
            with going_on(message):
                self._take(message, time.monotonic())
            if isinstance(message, GatewayWelcome) and not is_announced:
                is_announced = True
                on_ready()

    def _take(self, message: ToGatewayFromCoordinator, now: float) -> None:
        match message:
            case GatewayWelcome():
                self._pools.welcome(message, now)
                self._hear(message, now)
                if message.drain:
                    self._leave()
            case GatewayRefused(reason=reason):
                logger.error("the coordinator refuses this gateway now: %s", reason)
            case _:
                self._hear(message, now)

    def send(self, message: msgspec.Struct) -> None:
        """Say something."""
        self._link.send(message)

    def say_hello(self) -> None:
        """Say who this gateway is; the answer is a welcome."""
        self._link.send(self._hello())

    def close(self) -> None:
        """Hang up."""
        self._link.close()
