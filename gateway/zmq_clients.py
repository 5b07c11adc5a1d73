"""Clients over ZeroMQ: what they say goes to the intake, the ledger or their sessions; and back."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator

import msgspec

from gateway.actions import ToClient
from gateway.clients import Cut, Sessions
from tandem.codec import ProtocolError
from tandem.messages.client import (
    CancelRequest,
    ClientPing,
    ClientPong,
    Malformed,
    Received,
    Resume,
    Submit,
    ToGateway,
)
from tandem.sockets import RateLimited, Server

logger = logging.getLogger(__name__)


class ZmqClients:
    """Moves messages between the clients' socket and their sessions. Lives on one event loop.

    `take` enters a request, `cancel` ends one of a client's, `pong` answers a ping's label.
    """

    def __init__(
        self,
        server: Server[ToGateway],
        sessions: Sessions,
        *,
        take: Callable[[bytes, Submit], None],
        cancel: Callable[[bytes, bytes], None],
        pong: Callable[[str], ClientPong],
    ) -> None:
        self._server = server
        self._sessions = sessions
        self._take = take
        self._cancel = cancel
        self._pong = pong

    @property
    def num_unconfirmed(self) -> int:
        """Requests whose clients have not confirmed the end."""
        return self._sessions.num_unconfirmed

    async def serve(self) -> None:
        """Take what clients send, for ever."""
        while True:
            client, message = await self._server.receive()
            try:
                self._hear(client, message)
            except Exception:  # one request must not end everybody's service
                logger.exception("cannot handle a %s of a client", type(message).__name__)

    def _hear(self, client: bytes, message: ToGateway | ProtocolError) -> None:
        now = time.monotonic()
        match message:
            case Submit(label=label) if self._sessions.knows(client, label):
                self._execute(self._sessions.repeat(client, label, now))
            case Submit():
                self._take(client, message)
            case CancelRequest(request_id=request_id):
                owner = self._sessions.owner_of(client, request_id, now)
                if owner is not None:
                    self._cancel(owner, request_id)
            case Received():
                self._execute(self._sessions.received(client, message, now))
            case Resume():
                self._execute(self._sessions.resume(client, message, now))
            case ClientPing():
                self._server.send(client, self._pong(message.label))
            case ProtocolError():
                self._server.send(client, _explain(message))

    def tell(self, client: bytes, message: msgspec.Struct, now: float) -> None:
        """The ledger's next word to a client."""
        self._execute(self._sessions.tell(client, message, now))

    def tick(self, now: float) -> None:
        """Resends, cuts and forgetting; to be called every 0.1 s."""
        self._execute(self._sessions.tick(now))

    def _execute(self, actions: Iterable[ToClient | Cut]) -> None:
        """Send to clients; one that cannot be reached is detached, and may come back."""
        for action in actions:
            with going_on(action):
                self._do(action)

    def _do(self, action: ToClient | Cut) -> None:
        match action:
            case ToClient(client, message):
                if not self._server.send(client, message):
                    self._sessions.unreachable(client)
            case Cut(owner, request_id, reason):
                logger.warning("request %s is cut: %s", request_id.hex(), reason)
                self._cancel(owner, request_id)


@contextlib.contextmanager
def going_on(what: object) -> Iterator[None]:
    """Around one thing among many: where it fails, the others still happen."""
    try:
        yield
    except Exception:
        name = what if isinstance(what, str) else type(what).__name__
        logger.exception("this gateway goes on without one %s", name)


def _explain(error: ProtocolError) -> Malformed:
    """What a client is told of a message that was dropped."""
    return Malformed(message=str(error)[:500], is_rate_limited=isinstance(error, RateLimited))
