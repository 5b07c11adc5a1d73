"""The far side of the stream measurement: receives pages as a node does, and the bare stream.

`python -m benchmarks.handoff.far PAGE_KIB NUM_PAGES ENCRYPT` prints `ready far ADDRESS`. Started by
`benchmarks/handoff/stream.py`.
"""

import queue
import sys
import threading

import msgspec
import zmq

from benchmarks.handoff.wire import (
    FAR,
    HOST,
    TO_FAR,
    WRITER,
    Ok,
    Open,
    Sink,
    SinkAt,
    Size,
    Socket,
    Verify,
    key_of,
    make_exchange,
    make_keys,
)
from kv_transfer.actions import CloseGrant, OpenGrant, PagesVerified, VerifyPages
from kv_transfer.door import Door
from kv_transfer.niceness import yielding_context
from kv_transfer.zmq_frames import listen
from node.core import FromBulk
from tandem.messages.handoff import WriterHello


class Far:
    """Serves the near side's commands, one at a time."""

    def __init__(self, size: Size, *, encrypt: bool) -> None:
        self._size = size
        self._encrypt = encrypt
        self._events: queue.Queue[object] = queue.Queue()
        self._exchange, _ = make_exchange(FAR, size, encrypt=encrypt)
        self._exchange.start(self._take)

    def _take(self, wrapped: FromBulk) -> bool:
        """On the bulk thread."""
        self._events.put(wrapped.event)
        return True

    def answer(self, frames: list[bytes]) -> msgspec.Struct:
        """To one command."""
        match TO_FAR.decode(frames[-1]):
            case WriterHello() as hello:
                return self._exchange.answer(WRITER, hello)
            case Open(grant_id):
                pages = tuple(range(self._size.num_pages))
                self._exchange.submit(OpenGrant(grant_id, WRITER, pages))
                return Ok()
            case Verify(grant_id, chunk):
                pages = tuple(range(self._size.num_pages))
                self._exchange.submit(VerifyPages(key_of(grant_id), grant_id, pages, (chunk,)))
                while not isinstance(event := self._events.get(timeout=30), PagesVerified):
                    pass
                self._exchange.submit(CloseGrant(grant_id))
                return Ok(event.error)
            case Sink(public_key):
                return self._open_sink(public_key)

    def _open_sink(self, public_key: bytes | None) -> SinkAt:
        context = yielding_context()
        keys = make_keys(encrypt=self._encrypt)
        door = None if keys is None else Door(context)
        if door is not None and public_key is not None:
            door.allow(public_key, WRITER)
        socket, address = listen(context, HOST, keys)
        arguments = (socket, door, self._size.num_chunks)
        threading.Thread(target=drain, args=arguments, daemon=True).start()
        return SinkAt(address, None if keys is None else keys.public.decode())


def drain(socket: Socket, door: Door | None, num_chunks: int) -> None:
    """Receive for ever, keep nothing, answer every `num_chunks` messages."""
    poller = zmq.Poller()
    poller.register(socket, zmq.POLLIN)
    if door is not None:
        poller.register(door.socket, zmq.POLLIN)
    num_left = num_chunks
    while True:
        for ready, _ in poller.poll():
            if ready is not socket and door is not None:
                door.serve()
                continue
            sender, *_ = socket.recv_multipart(copy=False)
            num_left -= 1
            if num_left == 0:
                socket.send_multipart([sender.bytes, b"all"])
                num_left = num_chunks


def main() -> None:
    """Serve until killed."""
    page_kib, num_pages, encrypt = map(int, sys.argv[1:])
    far = Far(Size(page_kib, num_pages), encrypt=bool(encrypt))
    socket, address = listen(yielding_context(), HOST, None)
    print(f"ready {FAR} {address}", flush=True)
    while True:
        sender, *frames = socket.recv_multipart()
        socket.send_multipart([sender, msgspec.msgpack.encode(far.answer(frames))])


if __name__ == "__main__":
    main()
