"""The bulk thread: moves, receives and verifies pages, one thread per node, its own ZeroMQ context.

Requests come from any thread through `submit`; each is answered by an event through `post`, called
on the bulk thread. Work is cut into slices of about 1 MiB, so a stop takes effect between slices.
Copies and hashes of that size release the interpreter's lock: other threads wait for 0.1 ms.
"""

import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import zmq

from kv_transfer.actions import (
    BulkEvent,
    CloseGrant,
    FenceWriter,
    OpenGrant,
    ReadPages,
    StopWriting,
    VerifyPages,
    WritePages,
)
from kv_transfer.allocator import keep_freed_memory
from kv_transfer.backing import Backing
from kv_transfer.checksum import HostPages, OwnPages, PageArray
from kv_transfer.cuda_driver import DeviceLost
from kv_transfer.cuda_ipc import CudaPages
from kv_transfer.inproc import InprocPools
from kv_transfer.niceness import Naps, give_way, yielding_context
from kv_transfer.peer_pools import PeerPools
from kv_transfer.pool_owner import PoolOwner
from kv_transfer.probe import Trial, fastest, try_offer
from kv_transfer.transport import SLICE_BYTES, PeerPool, PoolRequest, explain_request, failed
from kv_transfer.wake import Wake
from kv_transfer.zmq_frames import CurveKeys
from kv_transfer.zmq_receiver import ZmqReceiver
from tandem.messages.handoff import TransportOffer

MAX_REQUESTS = 100_000  # a bound for runaway callers; real nodes have tens
NO_PAGES: PageArray = np.empty((0, 1), np.uint8)  # a GPU's are not received over zmq

BulkRequest = (
    WritePages | ReadPages | StopWriting | OpenGrant | CloseGrant | VerifyPages | FenceWriter
)
log = logging.getLogger("tandem.kv_transfer")


@dataclass(frozen=True, slots=True)
class _Peer:
    incarnation: int
    num_pages: int
    pool: PeerPool


@dataclass(frozen=True, slots=True)
class _AddPeer:
    node_id: str
    peer: _Peer


@dataclass(frozen=True, slots=True)
class _RemovePeer:
    node_id: str


@dataclass(frozen=True, slots=True)
class _AdmitWriter:
    writer: bytes
    transport: str


@dataclass(frozen=True, slots=True)
class _AllowKey:
    writer: bytes
    key: bytes


@dataclass(frozen=True, slots=True)
class _WatchWriter:
    writer: bytes
    pid: int
    pidfd: int


@dataclass(frozen=True, slots=True)
class _Stop:
    pass


_Request = BulkRequest | _AddPeer | _RemovePeer | _AdmitWriter | _AllowKey | _WatchWriter | _Stop


class BulkThread:
    """Moves `pages` ([num_pages, page_bytes], or those of a GPU) out to peers and in from writers.

    Writers over zmq are received at `zmq_address` on `host`; `identity` is the routing identity of
    this node's control links, under which owners know it. With `keys` every bulk connection is
    encrypted, and only writers whose key was allowed get in.
    """

    def __init__(
        self,
        pages: PageArray | CudaPages,
        *,
        identity: bytes,
        host: str,
        post: Callable[[BulkEvent], None],
        inproc: InprocPools | None = None,
        keys: CurveKeys | None = None,
    ) -> None:
        self._own: OwnPages = (
            pages if isinstance(pages, CudaPages) else HostPages(pages, SLICE_BYTES)
        )
        self._post = post
        self._keys = keys
        self._failed: Callable[[BaseException], None] | None = None
        self._openings = threading.Lock()  # guards the next two, for `open_peer` on any thread
        self._num_closings: Counter[str] = Counter()  # by node id
        self._is_closed = False
        self._requests: deque[_Request] = deque()
        self._num_asked = 0
        self._peers: dict[str, _Peer] = {}
        keep_freed_memory()
        self._context = yielding_context()
        received = NO_PAGES if isinstance(pages, CudaPages) else pages
        self._receiver = ZmqReceiver(self._context, received, host, keys)
        self._pools = PeerPools(
            self._context, self._own, identity=identity, inproc=inproc, keys=keys
        )
        self._wake = Wake()
        self._poller = zmq.Poller()
        self._poller.register(self._wake.descriptor, zmq.POLLIN)
        self._poller.register(self._receiver.socket, zmq.POLLIN)
        if self._receiver.door is not None:
            self._poller.register(self._receiver.door.socket, zmq.POLLIN)
        backing = Backing(self._own.pages) if isinstance(self._own, HostPages) else None
        if backing is not None:
            backing.want_first()
        self._owner = PoolOwner(self._own, self._receiver, self._poller, post, backing)
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
        """Reach an owner's pool over this very transport; see `open_fastest`."""
        num_closings = self._num_closings_of(node_id)
        offer = TransportOffer(transport=transport, address=address)
        pool = self._pools.open(offer, num_pages)
        self._adopt(node_id, _Peer(incarnation, num_pages, pool), num_closings)

    def open_fastest(
        self, node_id: str, incarnation: int, offers: Sequence[TransportOffer], num_pages: int
    ) -> tuple[list[Trial], Trial]:
        """Try all offers, reach an owner's pool over the fastest, in place of an earlier one.

        Only requests for this very incarnation go there: what an earlier process of the node
        granted is nothing to a later one. May wait up to 2 s, on a thread of its own where that
        matters. Raises ValueError where no offer can be opened, or the link was given up or closed
        meanwhile. Returns all trials, and the one that was taken.
        """
        num_closings = self._num_closings_of(node_id)
        with self._telling():
            trials = [
                try_offer(offer, lambda o: self._pools.open(o, num_pages)) for offer in offers
            ]
            taken = fastest(trials)
            for trial in trials:
                if trial is not taken and trial.pool is not None:
                    trial.pool.close("another transport is faster")
        if taken is None or taken.pool is None:
            reasons = "; ".join(f"{trial.transport}: {trial.problem}" for trial in trials)
            raise ValueError(f"no transport to {node_id} works: {reasons}")
        self._adopt(node_id, _Peer(incarnation, num_pages, taken.pool), num_closings)
        return trials, taken

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """A device that is lost is told from any thread: the node is of no use any more."""
        try:
            yield
        except DeviceLost as error:
            if self._failed is not None:
                self._failed(error)
            raise

    def _num_closings_of(self, node_id: str) -> int:
        with self._openings:
            return self._num_closings[node_id]

    def _adopt(self, node_id: str, peer: _Peer, num_closings: int) -> None:
        """Hand an opened pool to the thread, unless the link was given up meanwhile."""
        with self._openings:
            if not self._is_closed and self._num_closings[node_id] == num_closings:
                self._enqueue(_AddPeer(node_id, peer))
                return
        peer.pool.close("given up before it was open")
        raise ValueError(f"the link to {node_id} was given up while its pool was being opened")

    def close_peer(self, node_id: str) -> None:
        """Give up an owner's pool, also one that is being opened; its unanswered requests fail."""
        with self._openings:
            self._num_closings[node_id] += 1
            self._enqueue(_RemovePeer(node_id))

    def admit_writer(self, writer: bytes, transport: str) -> None:
        """As an owner: this writer will use this transport. Precedes its grants."""
        self._enqueue(_AdmitWriter(writer, transport))

    def allow_key(self, writer: bytes, key: bytes) -> None:
        """As an owner: whoever has this key is that writer. Precedes its connecting."""
        self._enqueue(_AllowKey(writer, key))

    def watch_writer(self, writer: bytes, pid: int, pidfd: int) -> None:
        """As an owner: this process may map the pool from now on; its end is told. Takes pidfd."""
        with self._openings:
            if not self._is_closed:
                self._enqueue(_WatchWriter(writer, pid, pidfd))
                return
        os.close(pidfd)

    @property
    def num_malformed(self) -> int:
        """Frames dropped because they were no chunks."""
        return self._receiver.num_malformed

    @property
    def num_refused(self) -> int:
        """Chunks and reads that no open grant allowed."""
        return self._receiver.num_refused

    @property
    def public_key(self) -> str | None:
        """Of this node's bulk sockets, Z85; None where they have none."""
        return None if self._keys is None else self._keys.public.decode()

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
                request.peer.pool.close("this node stops")
            elif isinstance(request, _WatchWriter):
                os.close(request.pidfd)
        for node_id in list(self._peers):
            try:
                self._remove_peer(node_id)
            except DeviceLost as error:
                log.error("%s", error)  # the thread died of it, or the process ends now
        self._owner.close()
        self._receiver.close()
        self._context.term()
        self._wake.close()

    def _enqueue(self, request: _Request) -> None:
        self._requests.append(request)
        self._wake.set()

    # --- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        give_way()
        try:
            self._move_pages()
        except BaseException as error:
            if self._failed is not None:
                self._failed(error)
            raise

    def _move_pages(self) -> None:
        door = self._receiver.door
        naps = Naps()
        while True:
            patience_ms = self._patience_ms()
            naps.round_begins(has_work=patience_ms is not None)
            for ready, _ in self._poller.poll(patience_ms):
                if ready == self._wake.descriptor:
                    self._wake.clear()
                elif ready is self._receiver.socket:
                    self._receive()
                elif door is not None and ready is door.socket:
                    self._serve_waiting()  # a key was allowed before its owner was told
                    door.serve()
                elif isinstance(ready, int):
                    self._owner.process_ended(ready)
            self._serve_waiting()
            if self._requests and isinstance(self._requests[0], _Stop):
                return
            now = time.monotonic()
            for peer in list(self._peers.values()):
                for event in peer.pool.advance(now):
                    self._answer(event)
            self._owner.advance()

    def _patience_ms(self) -> int | None:
        waits = [peer.pool.patience_ms for peer in self._peers.values()]
        waits.append(self._owner.patience_ms)
        return min((wait for wait in waits if wait is not None), default=None)

    def _receive(self) -> None:
        """Requests first: a chunk's OpenGrant was handed over before its Grant was sent."""
        arrived = self._receiver.receive()
        self._serve_waiting()
        self._receiver.take(arrived)

    def _serve_waiting(self) -> None:
        """Serve all that was handed over, up to the end."""
        while self._requests and not isinstance(self._requests[0], _Stop):
            self._serve(self._requests.popleft())

    def _serve(self, request: _Request) -> None:
        match request:
            case WritePages() | ReadPages():
                self._ask(request)
            case StopWriting(key):
                for peer in self._peers.values():
                    for event in peer.pool.stop(key, "stopped"):
                        self._answer(event)
            case OpenGrant():
                self._owner.open_grant(request)
            case CloseGrant(grant_id):
                self._owner.close_grant(grant_id)
            case VerifyPages():
                self._owner.verify(request)
            case FenceWriter(writer):
                self._owner.fence(writer)
            case _AdmitWriter(writer, transport):
                self._owner.admit(writer, transport)
            case _WatchWriter(writer, pid, pidfd):
                self._owner.watch(writer, pid, pidfd)
            case _AllowKey(writer, curve_key):
                if self._receiver.door is not None:
                    self._receiver.door.allow(curve_key, writer)
            case _AddPeer(node_id, peer):
                self._remove_peer(node_id)
                self._peers[node_id] = peer
                if peer.pool.socket is not None:
                    self._poller.register(peer.pool.socket, zmq.POLLIN)
            case _RemovePeer(node_id):
                self._remove_peer(node_id)

    def _ask(self, request: PoolRequest) -> None:
        owner = request.owner
        peer = self._peers.get(owner.node_id)
        problem: str | None = f"no pool of {owner.node_id} incarnation {owner.incarnation} is open"
        if peer is not None and peer.incarnation == owner.incarnation:
            problem = explain_request(request, self._own.num_pages, peer.num_pages)
        if self._num_asked >= MAX_REQUESTS:
            problem = f"more than {MAX_REQUESTS} requests are waiting"
        if peer is None or problem is not None:
            self._post(failed(request, problem or ""))
            return
        self._num_asked += 1
        peer.pool.submit(request, time.monotonic())

    def _answer(self, event: BulkEvent) -> None:
        self._num_asked -= 1
        self._post(event)

    def _remove_peer(self, node_id: str) -> None:
        peer = self._peers.pop(node_id, None)
        if peer is None:
            return
        if peer.pool.socket is not None:
            self._poller.unregister(peer.pool.socket)
        for event in peer.pool.close(f"the link to {node_id} was closed"):
            self._answer(event)
