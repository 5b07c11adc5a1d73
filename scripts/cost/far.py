"""The far side of the control measurement: answers pings, receives and verifies pages.

Built like a node: control sockets on one event loop, pages on the bulk thread. Started by
`scripts/cost/control.py`; prints `ready far ADDRESS`.
"""

import argparse
import asyncio
from pathlib import Path

import uvloop
import zmq.asyncio

from kv_transfer.actions import CloseGrant, OpenGrant, PagesVerified, VerifyPages
from node.core import FromBulk
from scripts.cost.wire import FAR, NUM_OPEN, Ping, Pong, Side, ToFar, Verified, Written, key_of
from tandem.codec import ProtocolError
from tandem.keys import Keyring
from tandem.messages.handoff import WriterHello
from tandem.service import run_until, stop_on_signals
from tandem.sockets import Server


class Far:
    """One writer's peer. Grants are made ahead of it, all for the whole pool."""

    def __init__(self, server: "Server[ToFar]", side: Side) -> None:
        self._server = server
        self._side = side
        self._loop = asyncio.get_running_loop()
        self._writer: bytes | None = None
        side.exchange.start(self._from_bulk)

    async def run(self) -> None:
        """Answer for ever."""
        while True:
            peer, message = await self._server.receive()
            match message:
                case Ping(number=number):
                    self._server.send(peer, Pong(number=number))
                case WriterHello():
                    welcome = self._side.exchange.answer(peer, message)
                    if self._side.exchange.is_admitted(peer) and self._writer is None:
                        self._writer = peer
                        for grant_id in range(1, NUM_OPEN + 1):
                            self._open(grant_id)
                    self._server.send(peer, welcome)  # it writes to grants that are open by then
                case Written(grant_id=grant_id, chunk=chunk):
                    pages, key = self._side.pages, key_of(grant_id)
                    self._side.exchange.submit(VerifyPages(key, grant_id, pages, (chunk,)))
                    self._open(grant_id + NUM_OPEN)
                case ProtocolError():
                    raise ValueError(f"the near side said: {message}")

    def _open(self, grant_id: int) -> None:
        assert self._writer is not None, "admitted before it writes"
        self._side.exchange.submit(OpenGrant(grant_id, self._writer, self._side.pages))

    def _from_bulk(self, wrapped: FromBulk) -> bool:
        """On the bulk thread."""
        event = wrapped.event
        if isinstance(event, PagesVerified):
            self._loop.call_soon_threadsafe(self._tell, event)
        return True

    def _tell(self, event: PagesVerified) -> None:
        self._side.exchange.submit(CloseGrant(event.grant_id))
        if self._writer is not None:
            answer = Verified(grant_id=event.grant_id, error=event.error)
            self._server.send(self._writer, answer)


async def serve(args: argparse.Namespace) -> None:
    """Until a signal."""
    stop = stop_on_signals()
    keys = None if args.keys is None else Keyring(args.keys, "node", FAR)
    side = Side.make(FAR, args.transport, args.num_pages, args.run_dir, encrypt=keys is not None)
    context = zmq.asyncio.Context()
    server: Server[ToFar] = Server(context, ToFar, keys=keys, allowed={"node": ToFar})
    try:
        print(f"ready far {server.bind('127.0.0.1', 0)}", flush=True)
        await run_until(stop, Far(server, side).run())
    finally:
        side.exchange.close()
        server.close()
        context.term()


def main() -> None:
    """The flags are between us and the near side."""
    parser = argparse.ArgumentParser(prog="scripts.cost.far", description=__doc__)
    parser.add_argument("--transport", required=True)
    parser.add_argument("--num-pages", type=int, required=True)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--keys", type=Path)
    uvloop.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
