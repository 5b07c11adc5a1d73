"""The bulk thread: moves, receives and verifies pages, one thread per node, its own ZeroMQ context.

Requests come from any thread through `submit`; each is answered by an event through `post`, called
on the bulk thread. Work is cut into slices of about 1 MiB, so a stop takes effect between slices.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

import zmq

from kv_transfer.actions import (
    BulkEvent,
    CloseGrant,
    GrantClosed,
    OpenGrant,
    PagesVerified,
    StopWriting,
    VerifyPages,
    WriteFailed,
    WritePages,
)
from kv_transfer.checksum import PageArray, explain_mismatch
from kv_transfer.inproc import InprocPools
from kv_transfer.shared_memory import map_pool
from kv_transfer.transport import PeerPool
from kv_transfer.wake import Wake
from kv_transfer.zmq_pages import ZmqPool, ZmqReceiver

MAX_WRITES = 100_000  # a bound for runaway callers; real nodes have tens

BulkRequest = WritePages | StopWriting | OpenGrant | CloseGrant | VerifyPages


@dataclass(frozen=True, slots=True)
class _AddPeer:
    node_id: str
    incarnation: int
    pool: PeerPool


@dataclass(frozen=True, slots=True)
class _RemovePeer:
    node_id: str


@dataclass(frozen=True, slots=True)
class _AdmitWriter:
    writer: bytes
    transport: str


@dataclass(frozen=True, slots=True)
class _Stop:
    pass


_Request = BulkRequest | _AddPeer | _RemovePeer | _AdmitWriter | _Stop


class BulkThread:
    """Moves pages of `pages` ([num_pages, page_bytes]) out to peers and in from writers.

    Writers over zmq are received at `zmq_address` on `host`; `identity` is the routing identity of
    this node's control links, under which owners know it.
    """

    def __init__(
        self,
        pages: PageArray,
        *,
        identity: bytes,
        host: str,
        post: Callable[[BulkEvent], None],
        inproc: InprocPools | None = None,
    ) -> None:
        self._pages = pages
        self._identity = identity
        self._post = post
        self._inproc = inproc
        self._failed: Callable[[BaseException], None] | None = None
        self._openings = threading.Lock()  # guards the next two, for `open_peer` on any thread
        self._num_closings: Counter[str] = Counter()  # by node id
        self._is_closed = False
        self._requests: deque[_Request] = deque()
        self._num_writes_asked = 0
        self._peers: dict[str, PeerPool] = {}
        self._incarnations: dict[str, int] = {}
        self._writers: dict[bytes, str] = {}  # transport by routing identity
        self._grants: dict[int, tuple[OpenGrant, str]] = {}
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._receiver = ZmqReceiver(self._context, pages, host)
        self._wake = Wake()
        self._poller = zmq.Poller()
        self._poller.register(self._wake.descriptor, zmq.POLLIN)
        self._poller.register(self._receiver.socket, zmq.POLLIN)
        self._thread = threading.Thread(target=self._run, name="bulk", daemon=True)
        self.zmq_address = self._receiver.address

    # --- for other threads -----------------------------------------------------------------------

    def start(self, failed: Callable[[BaseException], None] | None = None) -> None:
        """Begin. `failed` is told, on the thread, of an error that it dies of."""
        self._failed = failed
        self._thread.start()

    def submit(self, request: BulkRequest) -> None:
        """Hand over a request, from any thread; requests are served in order."""
        self._enqueue(request)

    def open_peer(
        self, node_id: str, incarnation: int, *, transport: str, address: str, num_pages: int
    ) -> None:
        """Reach an owner's pool, in place of an earlier one of that node.

        Only writes for this very incarnation go there: what an earlier process of the node granted
        is nothing to a later one. May wait up to 2 s for a mapping, on a thread of its own where
        that matters. Raises ValueError where the transport cannot be opened, or was given up or
        closed meanwhile.
        """
        with self._openings:
            num_closings = self._num_closings[node_id]
        pool = self._make_pool(transport, address, num_pages)
        with self._openings:
            if not self._is_closed and self._num_closings[node_id] == num_closings:
                self._enqueue(_AddPeer(node_id, incarnation, pool))
                return
        pool.close("given up before it was open")
        raise ValueError(f"the link to {node_id} was given up while its pool was being opened")

    def _make_pool(self, transport: str, address: str, num_pages: int) -> PeerPool:
        if transport == "shared_memory":
            return map_pool(self._pages, address, num_pages)
        if transport == "zmq":
            return ZmqPool(self._context, self._pages, identity=self._identity, address=address)
        if transport == "inproc" and self._inproc is not None:
            return self._inproc.open(self._pages, address, num_pages)
        raise ValueError(f"this node cannot write pages over {transport!r}")

    def close_peer(self, node_id: str) -> None:
        """Give up an owner's pool, also one that is being opened; its unanswered writes fail."""
        with self._openings:
            self._num_closings[node_id] += 1
            self._enqueue(_RemovePeer(node_id))

    def admit_writer(self, writer: bytes, transport: str) -> None:
        """As an owner: this writer was told to use this transport. Precedes its grants."""
        self._enqueue(_AdmitWriter(writer, transport))

    @property
    def num_malformed(self) -> int:
        """Frames dropped because they were no chunks."""
        return self._receiver.num_malformed

    @property
    def is_alive(self) -> bool:
        """False before `start`, after `close`, and where the thread died of an error."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Fail what is unanswered, end the thread, release sockets and mappings; idempotent."""
        with self._openings:
            if self._is_closed:
                return
            self._is_closed = True
        if self._thread.is_alive():
            self._enqueue(_Stop())
            self._thread.join()
        for request in self._requests:  # what a thread that had died did not come to
            if isinstance(request, _AddPeer):
                request.pool.close("this node stops")
        for node_id in list(self._peers):
            self._remove_peer(node_id)
        self._receiver.close()
        self._context.term()
        self._wake.close()

    def _enqueue(self, request: _Request) -> None:
        self._requests.append(request)
        self._wake.set()

    # --- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._move_pages()
        except BaseException as error:
            if self._failed is not None:
                self._failed(error)
            raise

    def _move_pages(self) -> None:
        while True:
            for ready, _ in self._poller.poll(self._patience_ms()):
                if ready == self._wake.descriptor:
                    self._wake.clear()
                elif ready is self._receiver.socket:
                    self._receive()
            if not self._serve_requests():
                return
            now = time.monotonic()
            for peer in list(self._peers.values()):
                for event in peer.advance(now):
                    self._answer_write(event)

    def _patience_ms(self) -> int | None:
        waits = [peer.patience_ms for peer in self._peers.values()]
        return min((wait for wait in waits if wait is not None), default=None)

    def _receive(self) -> None:
        """Requests first: a chunk's OpenGrant was handed over before its Grant was sent."""
        arrived = self._receiver.receive()
        while self._requests and not isinstance(self._requests[0], _Stop):
            self._serve(self._requests.popleft())
        for identity, frames in arrived:
            self._receiver.take(identity, frames)

    def _serve_requests(self) -> bool:
        """Serve all; False where the thread is to end."""
        while self._requests:
            request = self._requests.popleft()
            if isinstance(request, _Stop):
                return False
            self._serve(request)
        return True

    def _serve(self, request: _Request) -> None:
        match request:
            case WritePages():
                self._write(request)
            case StopWriting(key):
                for peer in self._peers.values():
                    for event in peer.stop(key, "stopped"):
                        self._answer_write(event)
            case OpenGrant():
                self._open_grant(request)
            case CloseGrant(grant_id):
                self._close_grant(grant_id)
            case VerifyPages():
                self._verify(request)
            case _AddPeer(node_id, incarnation, pool):
                self._remove_peer(node_id)
                self._peers[node_id] = pool
                self._incarnations[node_id] = incarnation
                if pool.socket is not None:
                    self._poller.register(pool.socket, zmq.POLLIN)
            case _RemovePeer(node_id):
                self._remove_peer(node_id)
            case _AdmitWriter(writer, transport):
                self._writers[writer] = transport

    def _write(self, request: WritePages) -> None:
        owner = request.owner
        peer = self._peers.get(owner.node_id)
        problem = None
        if peer is None or self._incarnations[owner.node_id] != owner.incarnation:
            problem = f"no pool of {owner.node_id} incarnation {owner.incarnation} is open"
        elif self._num_writes_asked >= MAX_WRITES:
            problem = f"more than {MAX_WRITES} writes are waiting"
        if peer is None or problem is not None:
            self._post(WriteFailed(request.key, request.first, problem or ""))
            return
        self._num_writes_asked += 1
        peer.write(request, time.monotonic())

    def _answer_write(self, event: BulkEvent) -> None:
        self._num_writes_asked -= 1
        self._post(event)

    def _remove_peer(self, node_id: str) -> None:
        pool = self._peers.pop(node_id, None)
        if pool is None:
            return
        if pool.socket is not None:
            self._poller.unregister(pool.socket)
        for event in pool.close(f"the link to {node_id} was closed"):
            self._answer_write(event)

    def _open_grant(self, request: OpenGrant) -> None:
        transport = self._writers.get(request.writer, "unknown")
        self._grants[request.grant_id] = (request, transport)
        if transport == "zmq":
            self._receiver.open_grant(request.grant_id, request.writer, request.pages)

    def _close_grant(self, grant_id: int) -> None:
        _, transport = self._grants.pop(grant_id, (None, "unknown"))
        if transport == "zmq":
            self._receiver.close_grant(grant_id)
        # Whoever maps the pool writes without us: only its own word, or a fence, is proof.
        self._post(GrantClosed(grant_id, remote_writer_stopped=transport == "zmq"))

    def _verify(self, request: VerifyPages) -> None:
        _, transport = self._grants.get(request.grant_id, (None, "unknown"))
        error = self._receiver.close_grant(request.grant_id) if transport == "zmq" else None
        if error is None:
            error = explain_mismatch(
                self._pages, request.pages, request.chunks, request.key, request.grant_id
            )
        self._post(PagesVerified(request.key, request.grant_id, error))
