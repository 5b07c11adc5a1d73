"""A node's bulk side in one piece: its pool, the handshake, the thread that moves pages.

`node/peers.py` says what a node needs of it (`PageExchange`).
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from kv_transfer import handshake
from kv_transfer.actions import (
    BulkEvent,
    PagesRead,
    PagesWritten,
    ReadFailed,
    WriteFailed,
    WriterGone,
)
from kv_transfer.bulk import BulkRequest, BulkThread
from kv_transfer.cuda_ipc import CudaPool
from kv_transfer.probe import explain
from kv_transfer.shared_memory import SharedPool
from kv_transfer.writers import Writers
from kv_transfer.zmq_frames import CurveKeys
from node.core import FromBulk
from node.state import NodeIdentity
from tandem.messages.handoff import OwnerRefused, OwnerWelcome, TransportOffer, WriterHello
from tandem.messages.membership import LinkReport
from tandem.sockets import peer_identity

OF_HOSTS, OF_GPUS = ("shared_memory", "zmq"), ("cuda_ipc",)
RETRY_S = 0.002
MAX_LINKS = 64
WRITER_EVENTS = PagesWritten | WriteFailed | PagesRead | ReadFailed
log = logging.getLogger("tandem.kv_transfer")


class BulkExchange:
    """See the module. A node whose pages stay in its process (`pool` None) offers no transport.

    With `encrypt_bulk` pages over zmq are encrypted, and only writers that were welcomed get in.
    """

    def __init__(
        self,
        identity: NodeIdentity,
        pool: SharedPool | CudaPool | None,
        *,
        num_pages: int,
        transport: str,
        host: str,
        advertised_host: str | None = None,
        run_dir: Path | None = None,
        encrypt_bulk: bool = False,
    ) -> None:
        self._identity = identity
        self._wanted = _wanted(transport, pool)
        self._host_id = handshake.host_id()
        self._epoch = 0
        self._offer_event: Callable[[FromBulk], bool] | None = None
        self._closing = False
        self._writers = Writers()
        self._measuring = threading.Lock()
        self._measured: dict[str, Mapping[str, float]] = {}
        self._links: dict[str, LinkReport] = {}
        self._pool = pool
        self._bulk: BulkThread | None = None
        offers: list[TransportOffer] = []
        if pool is not None:
            self._bulk = BulkThread(
                pool.pages(identity.layout.page_bytes, num_pages),
                identity=peer_identity("node", identity.node_id, identity.incarnation),
                host=host,
                post=self._post,
                keys=CurveKeys.generate() if encrypt_bulk else None,
            )
            zmq_address = self._bulk.zmq_address.replace(host, advertised_host or host)
            offers = self._make_offers(pool, self._bulk, zmq_address, run_dir)
        self._side = handshake.OwnerSide(
            identity.node_id,
            identity.incarnation,
            identity.layout,
            identity.model,
            self._host_id,
            num_pages,
            tuple(offers),
        )

    def _make_offers(
        self, pool: SharedPool | CudaPool, bulk: BulkThread, zmq_address: str, run_dir: Path | None
    ) -> list[TransportOffer]:
        def admit(writer: bytes, pid: int, pidfd: int) -> bool:
            if not self._writers.map(writer, pid):
                return False
            bulk.watch_writer(writer, pid, pidfd)
            return True

        def address(transport: str) -> str:
            if transport == "zmq":
                return zmq_address
            if isinstance(pool, CudaPool):
                return pool.serve(admit, self._identity.layout.page_bytes, run_dir)
            return pool.serve(admit, run_dir)

        return [
            TransportOffer(
                transport=transport,
                address=address(transport),
                key=bulk.public_key if transport == "zmq" else None,
            )
            for transport in self._wanted
        ]

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

    def hello(self, epoch: int, chosen: str | None = None) -> WriterHello:
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
            chosen=chosen,
            bulk_key=None if self._bulk is None else self._bulk.public_key,
        )

    def answer(self, writer: bytes, hello: WriterHello) -> msgspec.Struct:
        """How this node, as an owner, answers a writer with this routing identity."""
        settled = self._writers.chosen(writer)
        reply = handshake.answer(hello, self._side, epoch=self._epoch, settled=settled)
        bulk = self._bulk
        if isinstance(reply, OwnerRefused) or bulk is None:
            return reply
        problem = None
        if writer != peer_identity("node", hello.node_id, hello.incarnation):
            problem = f"{hello.node_id} introduced itself under another's identity"
        problem = problem or self._writers.greet(writer, hello.bulk_key)
        if problem is None and hello.bulk_key is not None:
            bulk.allow_key(writer, hello.bulk_key.encode())
        if problem is None and hello.chosen is not None:
            problem = self._writers.choose(writer, hello.chosen)
        if problem is not None:
            reason = f"{self._side.node_id} and {hello.node_id}: {problem}"
            return OwnerRefused(node_id=self._side.node_id, reason=reason)
        if hello.chosen is not None and settled is None:
            bulk.admit_writer(writer, hello.chosen)
        return reply

    def is_admitted(self, writer: bytes) -> bool:
        """Whether this node, as an owner, has confirmed this writer's transport."""
        return self._writers.chosen(writer) is not None

    def open_owner(self, welcome: OwnerWelcome) -> str:
        """Open the fastest of an owner's offers and return its name, which the owner is to confirm.

        ValueError with all reasons where none works. Takes some 50 ms and blocks for up to 2 s, so
        call it on a thread where that matters: `submit`, `close_owner` and `close` may be called
        meanwhile, and the latter two end it.
        """
        bulk = self._bulk
        offers = [offer for offer in welcome.offers if offer.transport in self._wanted]
        if bulk is None or not offers:
            named = [offer.transport for offer in welcome.offers]
            raise ValueError(f"{welcome.node_id} offers {named}, not among {list(self._wanted)}")
        try:
            trials, taken = bulk.open_fastest(
                welcome.node_id, welcome.incarnation, offers, welcome.num_pages
            )
        except ValueError as error:
            self._report(welcome.node_id, None, 0.0, str(error))
            raise
        told = explain(welcome.node_id, trials, taken)
        log.info("%s", told)
        self._report(welcome.node_id, taken.transport, taken.bytes_per_s, told)
        with self._measuring:
            self._measured[welcome.node_id] = {
                trial.transport: trial.bytes_per_s for trial in trials if trial.pool is not None
            }
        return taken.transport

    def measured(self) -> dict[str, dict[str, float]]:
        """Bytes per second to each owner by transport, as measured when its link was opened."""
        with self._measuring:
            return {node_id: dict(speeds) for node_id, speeds in self._measured.items()}

    def _report(self, node_id: str, transport: str | None, speed: float, text: str) -> None:
        with self._measuring:
            self._links.pop(node_id, None)  # the latest are at the end
            self._links[node_id] = LinkReport(
                node_id=node_id, transport=transport, bytes_per_s=speed, explanation=text[:200]
            )

    def links(self) -> tuple[LinkReport, ...]:
        """How each owner is reached, or why not; the latest 64."""
        with self._measuring:
            return tuple(self._links.values())[-MAX_LINKS:]

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
        if isinstance(event, WriterGone):
            self._writers.gone(event.writer)
        offer = self._offer_event
        wrapped = FromBulk(event, isinstance(event, WRITER_EVENTS))
        while not self._closing and offer is not None and not offer(wrapped):
            time.sleep(RETRY_S)


def _wanted(transport: str, pool: SharedPool | CudaPool | None) -> tuple[str, ...]:
    """The transports of an operator's choice that this memory has."""
    if pool is None:
        return ("device_memory",)
    possible = OF_GPUS if isinstance(pool, CudaPool) else OF_HOSTS
    wanted = possible if transport == "auto" else (transport,)
    if not set(wanted) <= set(possible):
        raise ValueError(f"--transport {transport} is not for this device: one of {possible} is")
    return wanted
