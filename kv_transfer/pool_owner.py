"""This node's pool as others write and read it: open grants, checksums, the processes behind it.

On the bulk thread. Over zmq only our receiver writes, so closing a grant there is proof enough; who
maps the pool has to say so itself, or its process has to have ended, which a pidfd tells.
"""

import logging
import os
import signal
from collections import deque
from collections.abc import Callable

import zmq

from kv_transfer.actions import (
    BulkEvent,
    GrantClosed,
    OpenGrant,
    PagesVerified,
    VerifyPages,
    WriterGone,
)
from kv_transfer.backing import Backing
from kv_transfer.checksum import OwnPages, Verification
from kv_transfer.zmq_receiver import ZmqReceiver

UNKNOWN, ENDED = "unknown", "ended"
MAX_WRITERS = 8192
log = logging.getLogger("tandem.kv_transfer")


class PoolOwner:
    """Serves the requests of the owner's hand-off machine; answers through `post`."""

    def __init__(
        self,
        pages: OwnPages,
        receiver: ZmqReceiver,
        poller: zmq.Poller,
        post: Callable[[BulkEvent], None],
        backing: Backing | None = None,
    ) -> None:
        self._pages = pages
        self._backing = backing  # of pages in host memory
        self._receiver = receiver
        self._poller = poller
        self._post = post
        self._transports: dict[bytes, str] = {}  # by writer; ENDED once its process has
        self._grants: dict[int, tuple[OpenGrant, str]] = {}
        self._verifications: deque[Verification] = deque()
        self._processes: dict[bytes, tuple[int, int]] = {}  # pid and pidfd by writer
        self._writer_of: dict[int, bytes] = {}  # by pidfd

    @property
    def patience_ms(self) -> int | None:
        """Zero while something is to be verified, or memory to be asked for."""
        is_idle = self._backing is None or self._backing.is_idle
        return None if is_idle and not self._verifications else 0

    # --- writers ---------------------------------------------------------------------------------

    def admit(self, writer: bytes, transport: str) -> None:
        """It will use this transport. Precedes its grants."""
        if self._transports.get(writer) == ENDED:
            return
        self._transports[writer] = transport
        if len(self._transports) > MAX_WRITERS:
            busy = {writer, *self._processes, *(grant.writer for grant, _ in self._grants.values())}
            idle = (w for w in self._transports if w not in busy)
            self._transports.pop(next(idle, b""), None)

    def watch(self, writer: bytes, pid: int, pidfd: int) -> None:
        """Its process, which may map the pool from now on; the pidfd is ours."""
        if writer in self._processes:
            os.close(pidfd)  # it asked twice
            return
        self._processes[writer] = (pid, pidfd)
        self._writer_of[pidfd] = writer
        self._poller.register(pidfd, zmq.POLLIN)

    def process_ended(self, pidfd: int) -> None:
        """The poller says that a process has ended: it writes nothing any more."""
        writer = self._writer_of.get(pidfd)
        if writer is None:
            return
        self._forget_process(writer)
        self._transports[writer] = ENDED
        log.info("the process of %s has ended", writer.decode(errors="replace"))
        self._pages.settle()
        self._post(WriterGone(writer))

    def fence(self, writer: bytes) -> None:
        """End its process; that it has ended is told by the poller."""
        name = writer.decode(errors="replace")
        pid, pidfd = self._processes.get(writer, (None, None))
        if self._transports.get(writer) == ENDED:
            self._post(WriterGone(writer))
        elif pidfd is None or pid == os.getpid():
            log.warning("cannot end %s: its process is not known, or is this one", name)
        else:
            log.warning("ending %s (process %s): it may still write to pages", name, pid)
            try:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            except ProcessLookupError:
                return  # it ended meanwhile: the poller will say so

    def _forget_process(self, writer: bytes) -> None:
        _, pidfd = self._processes.pop(writer)
        del self._writer_of[pidfd]
        self._poller.unregister(pidfd)
        os.close(pidfd)

    # --- grants ----------------------------------------------------------------------------------

    def open_grant(self, grant: OpenGrant) -> None:
        """From now on its writer may write and read."""
        transport = self._transports.get(grant.writer, UNKNOWN)
        self._grants[grant.grant_id] = (grant, transport)
        if self._backing is not None:
            self._backing.want(grant.pages)
        if transport == "zmq":
            self._receiver.open_grant(grant)
        elif transport == ENDED:
            self._post(WriterGone(grant.writer))  # granted before that was known

    def close_grant(self, grant_id: int) -> None:
        """Take nothing more for it; what was still to be verified is given up."""
        for given_up in [v for v in self._verifications if v.request.grant_id == grant_id]:
            self._verifications.remove(given_up)
            self._post(PagesVerified(given_up.request.key, grant_id, "the grant was closed"))
        _, transport = self._grants.pop(grant_id, (None, UNKNOWN))
        if transport == "zmq":
            self._receiver.close_grant(grant_id)
        # Whoever maps the pool writes without us: only its own word, or its end, is proof.
        has_stopped = transport in ("zmq", ENDED)
        self._post(GrantClosed(grant_id, remote_writer_stopped=has_stopped))

    def verify(self, request: VerifyPages) -> None:
        """Take nothing more for the grant, then compare checksums."""
        _, transport = self._grants.get(request.grant_id, (None, UNKNOWN))
        error = self._receiver.close_grant(request.grant_id) if transport == "zmq" else None
        if error is None:
            self._verifications.append(Verification(self._pages, request))
        else:
            self._post(PagesVerified(request.key, request.grant_id, error))

    def advance(self) -> None:
        """Verify a slice of the oldest request; else ask for memory behind granted pages."""
        if not self._verifications:
            if self._backing is not None:
                self._backing.advance()
        elif self._verifications[0].advance():
            done = self._verifications.popleft()
            request = done.request
            self._post(PagesVerified(request.key, request.grant_id, done.error))

    def close(self) -> None:
        """Close what is held of processes."""
        for writer in list(self._processes):
            self._forget_process(writer)
