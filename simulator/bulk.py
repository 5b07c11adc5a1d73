"""The bulk side of a simulated node: real bytes, real checksums, copies that take virtual time.

Page by page, so that a stop, a freeze or a death finds a copy half done. A mapped copy runs in the
writer: frozen, it goes on writing when thawed, whatever became of the grant meanwhile, and each
written page is checked to be still held for it (invariant 4). Over "zmq" the owner's receiver
writes, for open grants only.
"""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kv_transfer import actions as kv
from kv_transfer.checksum import ChunkHasher
from node.ledger import PageLedger, PageState
from simulator.clock import Violation
from simulator.knobs import Knobs
from simulator.process import Process

STALL_S = 10.0
BLOCKED_S = 0.2
LATENCY_S = 0.0003
PIDFD_S = 0.01
WRITABLE = frozenset(
    {PageState.GRANTED, PageState.FILLING, PageState.DRAINING, PageState.QUARANTINED}
)
Pool = NDArray[np.uint8]
Job = kv.WritePages | kv.ReadPages


@dataclass(slots=True, eq=False)
class Copy:
    """A write or a read under way."""

    job: Job
    hasher: ChunkHasher | None
    num_done: int = 0
    num_answered: int = 0
    is_over: bool = False
    progress_at: float = 0.0

    @property
    def size(self) -> int:
        """Pages to copy."""
        job = self.job
        return len(job.source_pages if isinstance(job, kv.WritePages) else job.own_pages)


@dataclass(slots=True, eq=False)
class Peer:
    """An owner's pool as a writer reaches it."""

    incarnation: int
    owner: "BulkSide"
    transport: str
    copies: deque[Copy] = field(default_factory=deque)


@dataclass(slots=True)
class Surroundings:
    """What the bulk sides of all nodes share."""

    knobs: Knobs
    rng: random.Random
    is_blocked: Callable[[Process, Process], bool]
    fence: Callable[[bytes], None]  # SIGKILL through a pidfd
    is_kind: Callable[[], bool]


class BulkSide:
    """See the module. `post` takes the answers."""

    def __init__(
        self,
        process: Process,
        identity: bytes,
        pool: Pool,
        ledger: PageLedger,
        around: Surroundings,
        post: Callable[[kv.BulkEvent], None],
    ) -> None:
        self.process = process
        self.identity = identity
        self.pool = pool
        self.ledger = ledger
        self._around = around
        self._post = post
        self._requests: deque[object] = deque()
        self._peers: dict[str, Peer] = {}
        self._writers: dict[bytes, tuple[str, BulkSide]] = {}
        self._grants: dict[int, tuple[kv.OpenGrant, str]] = {}
        self._open: dict[int, kv.OpenGrant] = {}  # what our own receiver takes
        self._grant_of_page: dict[int, int] = {}

    # --- for the shell ----------------------------------------------------------------------

    def submit(self, request: object) -> None:
        """Hand over a request; requests are served in order."""
        self._requests.append(request)
        self.process.after(LATENCY_S, self._serve_next)

    def open_peer(self, node_id: str, incarnation: int, owner: "BulkSide", transport: str) -> None:
        """Reach an owner's pool, in place of an earlier one of that node."""
        self.close_peer(node_id)
        self._peers[node_id] = Peer(incarnation, owner, transport)

    def close_peer(self, node_id: str) -> None:
        """Give an owner's pool up; its unanswered copies fail."""
        peer = self._peers.pop(node_id, None)
        for copy in [] if peer is None else list(peer.copies):
            assert peer is not None
            self._fail(peer, copy, f"the link to {node_id} was closed")

    def admit_writer(self, writer: "BulkSide", transport: str) -> None:
        """As an owner: this writer was told to use this transport."""
        self._writers[writer.identity] = (transport, writer)

    def writer_died(self, writer: bytes) -> None:
        """The pidfd of a process that has our pool mapped says that it ended."""
        transport, _ = self._writers.get(writer, ("zmq", self))
        if transport != "zmq":
            self.process.after(PIDFD_S, self._answer, kv.WriterGone(writer))

    def _answer(self, event: kv.BulkEvent) -> None:
        self._post(event)

    @property
    def num_running(self) -> int:
        """Copies not answered yet."""
        return sum(len(peer.copies) for peer in self._peers.values())

    # --- requests ---------------------------------------------------------------------------

    def _serve_next(self) -> None:
        request = self._requests.popleft()
        match request:
            case kv.WritePages() | kv.ReadPages():
                self._start(request)
            case kv.StopWriting(key):
                for peer in self._peers.values():
                    for copy in [c for c in peer.copies if c.job.key == key]:
                        self._fail(peer, copy, "stopped")
            case kv.OpenGrant():
                self._open_grant(request)
            case kv.CloseGrant(grant_id):
                self._open.pop(grant_id, None)
                _, transport = self._grants.pop(grant_id, (None, "unknown"))
                self._answer(kv.GrantClosed(grant_id, remote_writer_stopped=transport == "zmq"))
            case kv.VerifyPages():
                self._open.pop(request.grant_id, None)
                error = self._explain_mismatch(request)
                self._answer(kv.PagesVerified(request.key, request.grant_id, error))
            case kv.FenceWriter(writer):
                if self._writers.get(writer, ("zmq", self))[0] != "zmq":
                    self.process.clock.reach("fence")
                    self._around.fence(writer)
            case _:
                raise Violation(f"the bulk side knows no {type(request).__name__}")

    def _open_grant(self, request: kv.OpenGrant) -> None:
        transport, _ = self._writers.get(request.writer, ("unknown", self))
        self._grants[request.grant_id] = (request, transport)
        for page in request.pages:
            self._grant_of_page[page] = request.grant_id
        if transport == "zmq":
            self._open[request.grant_id] = request

    def _explain_mismatch(self, request: kv.VerifyPages) -> str | None:
        for chunk in request.chunks:
            hasher = ChunkHasher(request.key, request.grant_id, chunk.first, chunk.num_pages)
            for page in request.pages[chunk.first : chunk.first + chunk.num_pages]:
                hasher.update(self.pool[page])
            if hasher.chunk_sum() != chunk:
                self.process.clock.reach("checksum mismatch")
                return f"checksum of pages from {chunk.first} differs from the writer's"
        return None

    def _start(self, job: Job) -> None:
        peer = self._peers.get(job.owner.node_id)
        if peer is None or peer.incarnation != job.owner.incarnation:
            self._answer_failed(job, f"no pool of {job.owner.node_id} is open")
            return
        hasher = None
        if isinstance(job, kv.WritePages):
            hasher = ChunkHasher(job.key, job.grant_id, job.first, len(job.source_pages))
        copy = Copy(job, hasher, progress_at=self.process.clock.now)
        peer.copies.append(copy)
        if len(peer.copies) == 1:
            self._go_on(peer)

    def _go_on(self, peer: Peer) -> None:
        if peer.copies:
            copy = peer.copies[0]
            if not copy.num_done:
                copy.progress_at = self.process.clock.now
            self.process.after(self._around.knobs.page_copy_s, self._copy_page, peer, copy)

    def _answer_failed(self, job: Job, reason: str) -> None:
        if isinstance(job, kv.WritePages):
            self._answer(kv.WriteFailed(job.key, job.first, reason))
        else:
            self._answer(kv.ReadFailed(job.key, reason))

    def _fail(self, peer: Peer, copy: Copy, reason: str) -> None:
        if copy.is_over:
            return
        copy.is_over = True
        is_first = peer.copies[0] is copy
        peer.copies.remove(copy)
        self._answer_failed(copy.job, reason)
        if is_first:
            self._go_on(peer)

    def _finish(self, peer: Peer, copy: Copy) -> None:
        copy.is_over = True
        peer.copies.popleft()
        if copy.hasher is None:
            self._answer(kv.PagesRead(copy.job.key, copy.size * self._around.knobs.page_copy_s))
        else:
            self._answer(kv.PagesWritten(copy.job.key, copy.hasher.chunk_sum()))
        self._go_on(peer)

    # --- copies -----------------------------------------------------------------------------

    def _copy_page(self, peer: Peer, copy: Copy) -> None:
        if copy.is_over:
            return
        if peer.transport == "zmq":
            self._send_page(peer, copy)
            return
        if isinstance(copy.job, kv.WritePages):
            self._write_mapped(peer.owner, copy.job, copy)
        else:
            self._check_held(copy.job.own_pages[copy.num_done], "a page that is read into")
            source = copy.job.owner_pages[copy.num_done]
            self.pool[copy.job.own_pages[copy.num_done]] = peer.owner.pool[source]
        copy.num_done += 1
        if copy.num_done == copy.size:
            self._finish(peer, copy)
        else:
            self._go_on(peer)

    def _write_mapped(self, owner: "BulkSide", job: kv.WritePages, copy: Copy) -> None:
        source, target = job.source_pages[copy.num_done], job.target_pages[copy.num_done]
        self._check_held(source, "a source page")
        if owner.process.is_alive:
            owner.check_writable(target, job.grant_id)
        assert copy.hasher is not None
        copy.hasher.update(self.pool[source])
        owner.pool[target] = self._maybe_corrupt(self.pool[source])

    def _check_held(self, page: int, what: str) -> None:
        state = self.ledger.state(page)
        if state not in (PageState.ACTIVE, PageState.DRAINING):
            raise Violation(f"I4: {what}, {page} of {self.process.name}, is {state.name}")

    def check_writable(self, page: int, grant_id: int) -> None:
        """Invariant 4: a remote writer touches this page under this grant right now."""
        state = self.ledger.state(page)
        holder = self._grant_of_page.get(page)
        if state not in WRITABLE or holder != grant_id:
            raise Violation(
                f"I4: page {page} of {self.process.name} is written under grant {grant_id} while "
                f"it is {state.name} and was last granted as {holder}"
            )

    def _maybe_corrupt(self, data: Pool) -> Pool:
        around = self._around
        if around.is_kind() or around.rng.random() >= around.knobs.corruption:
            return data
        self.process.clock.reach("corrupted page")
        broken = data.copy()
        broken[around.rng.randrange(len(broken))] ^= 1 << around.rng.randrange(8)
        return broken

    # --- over the wire ----------------------------------------------------------------------

    def _send_page(self, peer: Peer, copy: Copy) -> None:
        if copy.num_done == 0:
            self._watch(peer, copy)
        owner, job = peer.owner, copy.job
        if self._around.is_blocked(self.process, owner.process):
            self.process.after(BLOCKED_S, self._copy_page, peer, copy)
            return
        position = copy.num_done
        copy.num_done += 1
        data = None
        if isinstance(job, kv.WritePages):
            self._check_held(job.source_pages[position], "a source page")
            assert copy.hasher is not None
            copy.hasher.update(self.pool[job.source_pages[position]])
            data = self._maybe_corrupt(self.pool[job.source_pages[position]]).copy()
            where = job.first + position
        else:
            where = job.owner_pages[position]
        owner.process.after(LATENCY_S, owner.receive, self, peer, copy, where, data)

    def _watch(self, peer: Peer, copy: Copy) -> None:
        """Give a silent owner up."""
        if copy.is_over:
            return
        if self.process.clock.now - copy.progress_at > STALL_S:
            self._fail(peer, copy, f"no acknowledgement from the page owner for {STALL_S:g} s")
        else:
            self.process.after(1.0, self._watch, peer, copy)

    def receive(
        self,
        writer: "BulkSide",
        peer: Peer,
        copy: Copy,
        where: int,
        data: Pool | None,
    ) -> None:
        """As an owner: a page, or with no data the wish for one, came over the wire."""
        error, grant_id = None, copy.job.grant_id
        if data is not None:
            grant = self._open.get(grant_id)
            if grant is None or grant.writer != writer.identity:
                error = "the grant is not open"
            else:
                self.check_writable(grant.pages[where], grant_id)
                self.pool[grant.pages[where]] = data
        else:
            opened, _ = self._grants.get(grant_id, (None, ""))
            if opened is None or where not in opened.readable_pages:
                error = "the grant is not open"
            else:
                data = self.pool[where].copy()
        writer.process.after(LATENCY_S, writer.answered, peer, copy, data, error)

    def answered(self, peer: Peer, copy: Copy, data: Pool | None, error: str | None) -> None:
        """As a writer: the owner took a page, or sent one, or will not."""
        if copy.is_over:
            return
        if error is not None:
            self._fail(peer, copy, error)
            return
        if isinstance(copy.job, kv.ReadPages):
            assert data is not None
            self._check_held(copy.job.own_pages[copy.num_answered], "a page that is read into")
            self.pool[copy.job.own_pages[copy.num_answered]] = data
        copy.num_answered += 1
        copy.progress_at = self.process.clock.now
        if copy.num_answered == copy.size:
            self._finish(peer, copy)
        else:
            self.process.after(self._around.knobs.page_copy_s, self._copy_page, peer, copy)
