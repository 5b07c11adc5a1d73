"""A node's bulk side in one piece: its pool, the handshake, the thread that moves pages.

`node/peers.py` says what a node needs of it (`PageExchange`).
"""

import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from kv_transfer import handshake
from kv_transfer.actions import BulkEvent, PagesWritten, WriteFailed
from kv_transfer.bulk import BulkRequest, BulkThread
from kv_transfer.shared_memory import SharedPool
from node.core import FromBulk
from node.state import NodeIdentity
from tandem.messages.handoff import OwnerWelcome, WriterHello
from tandem.sockets import peer_identity

TRANSPORTS = {
    "auto": ("shared_memory", "zmq"),
    "shared_memory": ("shared_memory",),
    "zmq": ("zmq",),
}
RETRY_S = 0.002


class BulkExchange:
    """See the module. A node whose pool is no host memory (`pool` None) offers no transport yet."""

    def __init__(
        self,
        identity: NodeIdentity,
        pool: SharedPool | None,
        *,
        num_pages: int,
        transport: str,
        host: str,
        run_dir: Path | None = None,
    ) -> None:
        self._identity = identity
        self._num_pages = num_pages
        self._wanted = TRANSPORTS[transport] if pool is not None else ("device_memory",)
        self._host_id = handshake.host_id()
        self._epoch = 0
        self._offers: list[handshake.Offer] = []
        self._offer_event: Callable[[FromBulk], bool] | None = None
        self._closing = False
        self._admitted: set[bytes] = set()
        self._pool = pool
        self._bulk: BulkThread | None = None
        if pool is None:
            return
        self._bulk = BulkThread(
            pool.pages(identity.layout.page_bytes, num_pages),
            identity=peer_identity("node", identity.node_id, identity.incarnation),
            host=host,
            post=self._post,
        )
        if "shared_memory" in self._wanted:
            self._offers.append(handshake.Offer("shared_memory", pool.serve(run_dir)))
        if "zmq" in self._wanted:
            self._offers.append(handshake.Offer("zmq", self._bulk.zmq_address))

    def start(
        self,
        offer: Callable[[FromBulk], bool],
        failed: Callable[[BaseException], None] | None = None,
    ) -> None:
        """Begin; events go to `offer`, again and again while it answers False (queue full).

        `failed` is called on the bulk thread with an error that it dies of: nothing moves after it.
        """
        self._offer_event = offer
        if self._bulk is not None:
            self._bulk.start(failed)

    def hello(self, epoch: int) -> WriterHello:
        """How this node introduces itself to a page owner, under its present epoch."""
        self._epoch = epoch
        return WriterHello(
            node_id=self._identity.node_id,
            incarnation=self._identity.incarnation,
            epoch=epoch,
            layout=self._identity.layout,
            model=self._identity.model,
            host_id=self._host_id,
            transports=self._wanted,
        )

    def answer(self, writer: bytes, hello: WriterHello) -> msgspec.Struct:
        """How this node, as an owner, answers a writer with this routing identity."""
        reply = handshake.answer(
            hello,
            node_id=self._identity.node_id,
            incarnation=self._identity.incarnation,
            epoch=self._epoch,
            layout=self._identity.layout,
            model=self._identity.model,
            host_id=self._host_id,
            num_pages=self._num_pages,
            offers=self._offers,
        )
        if isinstance(reply, OwnerWelcome) and self._bulk is not None:
            self._bulk.admit_writer(writer, reply.transport)
            self._admitted.add(writer)
        return reply

    def is_admitted(self, writer: bytes) -> bool:
        """Whether this node, as an owner, has welcomed the writer with this routing identity."""
        return writer in self._admitted

    def open_owner(self, welcome: OwnerWelcome) -> str | None:
        """The owner chose a transport: open it; an error text where that fails.

        Blocks for up to 2 s, so call it on a thread where that matters: `submit`, `close_owner` and
        `close` may be called meanwhile, and the latter two end it.
        """
        bulk = self._bulk
        if bulk is None or welcome.transport not in self._wanted:
            return f"{welcome.node_id} chose {welcome.transport}, not among {list(self._wanted)}"
        try:
            bulk.open_peer(
                welcome.node_id,
                welcome.incarnation,
                transport=welcome.transport,
                address=welcome.transport_address,
                num_pages=welcome.num_pages,
            )
        except ValueError as error:
            return str(error)
        return None

    def close_owner(self, node_id: str) -> None:
        """The link to an owner was given up: release its mapping or connection."""
        bulk = self._bulk
        if bulk is not None:
            bulk.close_peer(node_id)

    def submit(self, request: BulkRequest) -> None:
        """Hand a request to the thread that moves pages."""
        bulk = self._bulk
        assert bulk is not None or self._closing, "no transports: neither grants nor writes"
        if bulk is not None:
            bulk.submit(request)

    def close(self) -> None:
        """End the thread; release memory, sockets, descriptors. Idempotent."""
        self._closing = True
        if self._bulk is not None:
            self._bulk.close()
            self._bulk = None
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _post(self, event: BulkEvent) -> None:
        """No event may be lost: nobody would repeat it, and its pages would never be free."""
        offer = self._offer_event
        wrapped = FromBulk(event, isinstance(event, PagesWritten | WriteFailed))
        while not self._closing and offer is not None and not offer(wrapped):
            time.sleep(RETRY_S)
