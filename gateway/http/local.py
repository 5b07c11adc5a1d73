"""Clients of the ledger inside this process: one made-up client per stream, a queue each.

Nothing is acknowledged or resent here: a reader that is there reads, one that goes away cancels.
"""

import asyncio
import itertools
import logging
import secrets
from collections import deque
from collections.abc import Callable

from gateway.http.services import FromLedger, Take
from tandem.messages.client import Accepted, Done, Output, Refused, Submit

MAX_WAITING_BYTES = 1 << 20
# What a message takes beside its text: measured in Python objects, rounded up.
OUTPUT_BYTES, TOKEN_BYTES, LOGPROBS_BYTES = 400, 40, 200
LAST = (Refused, Done)
logger = logging.getLogger(__name__)


class LocalStream:
    """One request: `Stream` of gateway/http/services.py. Lives on the gateway's event loop."""

    def __init__(self, cancel: Callable[[bytes], None]) -> None:
        """`cancel` ends the ledger's request of that id."""
        self._cancel = cancel
        self._words: deque[FromLedger] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._take: Take | None = None
        self._num_bytes = 0
        self._request_id: bytes | None = None
        self._is_cancelled = False
        self._is_over = False

    async def next(self) -> FromLedger:
        """The next word; not to be called after `Refused` or `Done`."""
        while not self._words:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        word = self._words.popleft()
        if isinstance(word, Output):
            self._num_bytes -= _size(word)
        return word

    def divert(self, take: Take) -> None:
        """See `Stream`."""
        self._take = take

    def cancel(self) -> None:
        """Nobody reads on: end it; harmless when it is over, or called twice."""
        self._take = None
        self._words.clear()
        self._num_bytes = 0
        self._end()

    def _end(self) -> None:
        if self._is_cancelled:
            return
        self._is_cancelled = True
        if self._request_id is not None and not self._is_over:
            self._cancel(self._request_id)

    def tell(self, word: FromLedger) -> None:
        """The ledger's next word."""
        waiter = self._waiter
        if (
            self._take is not None
            and waiter is not None
            and not waiter.done()
            and isinstance(word, Output)
            and self._take(word)
        ):
            return
        match word:
            case Accepted(request_id=request_id):
                self._request_id = request_id
                if self._is_cancelled:
                    self._cancel(request_id)
            case Refused() | Done():
                self._is_over = True
            case Output():
                if self._is_cancelled:
                    return
                self._num_bytes += _size(word)
        self._words.append(word)
        if self._num_bytes > MAX_WAITING_BYTES:
            logger.warning("a request is cut: its HTTP caller left %d KiB of it unread",
                           self._num_bytes >> 10)  # fmt: skip
            self.cancel()  # its Done comes, and says so
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class LocalClients:
    """Open streams. `take` is the intake, `cancel` ends a client's request in the ledger."""

    def __init__(
        self,
        take: Callable[[bytes, Submit, bytes | None], None],
        cancel: Callable[[bytes, bytes], None],
    ) -> None:
        self._take = take
        self._cancel = cancel
        # No peer of a socket can have it: identities are told to nobody.
        self._prefix = b"\x00local" + secrets.token_bytes(16)
        self._numbers = itertools.count()
        self._streams: dict[bytes, LocalStream] = {}
        self._keys: dict[bytes, str] = {}

    def __len__(self) -> int:
        return len(self._streams)

    def open(self, submit: Submit, key: str | None, request_id: bytes | None = None) -> LocalStream:
        """Enter a request of a caller with this key, under an id that was made for it."""
        client = self._prefix + next(self._numbers).to_bytes(8, "big")
        stream = LocalStream(lambda request_id: self._cancel(client, request_id))
        self._streams[client] = stream
        if key is not None:
            self._keys[client] = key
        self._take(client, submit, request_id)
        return stream

    def owns(self, client: bytes) -> bool:
        """Whether it is one of these."""
        return client.startswith(self._prefix)

    def key_of(self, client: bytes) -> str | None:
        """The key that it came with."""
        return self._keys.get(client)

    def tell(self, client: bytes, word: FromLedger) -> None:
        """What the ledger, or the intake, has for one of these."""
        stream = self._streams.get(client)
        if stream is None:
            return
        if isinstance(word, LAST):
            del self._streams[client]
            self._keys.pop(client, None)
        stream.tell(word)


def _size(output: Output) -> int:
    """Bytes that a message takes, roughly."""
    num_ids = len(output.token_ids)
    num_logprobs = sum(2 + len(each.top) for each in output.logprobs)
    return OUTPUT_BYTES + len(output.text) + TOKEN_BYTES * num_ids + LOGPROBS_BYTES * num_logprobs
