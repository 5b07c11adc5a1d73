"""Who may connect to the bulk socket: keys that greeted writers announced, each for one identity.

libzmq asks over `inproc` (ZAP, RFC 27) at every handshake; the bulk thread answers. While it does
not, nobody gets in.
"""

import zmq
from zmq.utils import z85

from kv_transfer.zmq_frames import DOMAIN

ENDPOINT = "inproc://zeromq.zap.01"
MAX_KEYS = 4096


class Door:
    """The ZAP handler of a context; build it before the socket that it guards is bound."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
        self._writers: dict[bytes, bytes] = {}  # identity by Z85 key
        self.num_refused = 0
        self.socket: zmq.Socket[bytes] = context.socket(zmq.REP)
        self.socket.set(zmq.LINGER, 0)
        self.socket.bind(ENDPOINT)

    def allow(self, key: bytes, writer: bytes) -> None:
        """From now on this key is that writer's."""
        if len(self._writers) >= MAX_KEYS:
            del self._writers[next(iter(self._writers))]
        self._writers[key] = writer

    def writer_of(self, key: str) -> bytes | None:
        """Whose key it is."""
        return self._writers.get(key.encode())

    def serve(self) -> None:
        """Answer what was asked."""
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            version, request_id, user = frames[0], frames[1], self._judge(frames)
            self.num_refused += not user
            status = [b"200", b"OK"] if user else [b"400", b"unknown key"]
            self.socket.send_multipart([version, request_id, *status, user, b""])

    def _judge(self, frames: list[bytes]) -> bytes:
        """The key of whoever may come in, else nothing."""
        if len(frames) != 7 or frames[2] != DOMAIN or frames[5] != b"CURVE":
            return b""
        key = bytes(z85.encode(frames[6]))
        return key if key in self._writers else b""

    def close(self) -> None:
        """Close the socket; from then on nobody gets in."""
        self.socket.close(linger=0)
