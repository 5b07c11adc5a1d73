"""Admits CURVE connections to a server by key: ZeroMQ's authentication protocol (ZAP, RFC 27).

Fails closed: libzmq asks the socket below about every connection of a socket that enforces its
domain, and refuses it where nobody listens or answers.
"""

import asyncio
import logging
import time
from collections.abc import Collection

import zmq
import zmq.asyncio
from zmq.utils import z85

from tandem.keys import Keyring

ADDRESS = "inproc://zeromq.zap.01"
DOMAIN = b"tandem"
VERSION = b"1.0"
LOG_EVERY_S = 1.0
logger = logging.getLogger(__name__)


class Authenticator:
    """Answers for the one server with keys of a context; the user id of a message is its key."""

    def __init__(self, context: zmq.asyncio.Context, keys: Keyring, kinds: Collection[str]) -> None:
        self._keys = keys
        self._kinds = frozenset(kinds)
        self.num_refused = 0
        self._logged_at = 0.0
        self._socket: zmq.asyncio.Socket = context.socket(zmq.ROUTER)
        self._socket.set(zmq.LINGER, 0)
        try:
            self._socket.bind(ADDRESS)
        except zmq.ZMQError:
            self._socket.close(linger=0)
            raise ValueError("a context has one server with keys: make another context") from None
        self._task = asyncio.create_task(self._serve())
        self._task.add_done_callback(self._ended)

    async def _serve(self) -> None:
        while True:
            frames = await self._socket.recv_multipart()
            answer = self.judge(frames)
            if answer is not None:
                await self._socket.send_multipart(answer)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        """Without its handler the server admits nobody: an unanswered question would do the same,
        but only after a time-out."""
        self._socket.close(linger=0)
        if not task.cancelled() and task.exception() is not None:
            logger.critical("no more connections are admitted", exc_info=task.exception())

    def judge(self, frames: list[bytes]) -> list[bytes] | None:
        """The answer to one request of libzmq; None for what is none."""
        try:
            start = frames.index(b"") + 1
            version, request_id, domain, address, _, mechanism, *credentials = frames[start:]
        except ValueError:
            return None
        envelope = [*frames[:start], VERSION, request_id]
        is_ours = (version, domain, mechanism) == (VERSION, DOMAIN, b"CURVE")
        key = ""
        if is_ours and len(credentials) == 1 and len(credentials[0]) == 32:
            key = z85.encode(credentials[0]).decode()
        self._keys.refresh()
        owner = self._keys.owner_of(key)
        if owner is not None and owner[0] in self._kinds:
            return [*envelope, b"200", b"OK", key.encode(), b""]
        self._note_refusal(address, key, owner)
        return [*envelope, b"400", b"key not accepted", b"", b""]

    def _note_refusal(self, address: bytes, key: str, owner: tuple[str, str] | None) -> None:
        self.num_refused += 1
        now = time.monotonic()
        if now - self._logged_at < LOG_EVERY_S:
            return
        self._logged_at = now
        whose = "/".join(owner) if owner else "nobody in the keys folder"
        text = address.decode("ascii", errors="replace")
        logger.warning("refused %s: its key %s is of %s", text[:64], key[:8], whose)

    def close(self) -> None:
        """Admit nobody any more."""
        self._task.cancel()
        self._socket.close(linger=0)
