"""Does what the ledger asks: words to clients, to nodes, to the coordinator, each in its order."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import cast

from gateway.actions import Action, CloseNode, ToClient, ToCoordinator, ToNode
from gateway.coordinator_link import CoordinatorLink
from gateway.http.local import LocalClients
from gateway.http.services import FromLedger
from gateway.node_links import NodeLinks
from gateway.zmq_clients import ZmqClients
from tandem.messages.client import Done

logger = logging.getLogger(__name__)


class Deeds:
    """See the module. Lives on one event loop. `ended` is told of every end."""

    def __init__(
        self,
        local: LocalClients,
        zmq_clients: ZmqClients,
        nodes: NodeLinks,
        coordinator: CoordinatorLink,
        *,
        ended: Callable[[Done], None],
    ) -> None:
        self._local = local
        self._zmq_clients = zmq_clients
        self._nodes = nodes
        self._coordinator = coordinator
        self._ended = ended
        self._put_off: deque[Action] = deque()

    def do(self, actions: Iterable[Action]) -> None:
        """Do them now, after what was put off."""
        if self._put_off:
            self._do_put_off()
        for action in actions:
            self._try(action)

    def do_clients_first(self, actions: Iterable[Action]) -> None:
        """Tell clients now, and put the rest off until those who wait have written it: their tokens
        need not wait for acknowledgements and reports, 0.1 ms each time."""
        for action in actions:
            if isinstance(action, ToClient):
                self._try(action)
            else:
                if not self._put_off:
                    asyncio.get_running_loop().call_soon(self._do_put_off)
                self._put_off.append(action)

    def _do_put_off(self) -> None:
        while self._put_off:
            self._try(self._put_off.popleft())

    def _try(self, action: Action) -> None:
        try:  # `going_on` costs a fifth of an action
            self._do(action)
        except Exception:
            logger.exception("this gateway goes on without one %s", type(action).__name__)

    def _do(self, action: Action) -> None:
        match action:
            case ToClient(client, message):
                if self._local.owns(client):
                    self._local.tell(client, cast(FromLedger, message))
                else:
                    self._zmq_clients.tell(client, message, time.monotonic())
                if isinstance(message, Done):
                    self._ended(message)
            case ToNode(node, message):
                self._nodes.send(node, message)
            case ToCoordinator(message):
                self._coordinator.send(message)
            case CloseNode(node_id, epoch, reason):
                logger.info("node %s of epoch %d is down: %s", node_id, epoch, reason)
                self._nodes.close(node_id, epoch)
