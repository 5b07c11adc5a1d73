"""Sessions: what each client was sent of its requests, has acknowledged, and may ask for again.

They stand between the ledger, which tells each token once, and sockets, which lose what was on
its way when a connection breaks. A client that cannot be reached is detached, not cancelled; it
comes back under any routing identity. One that stays silent, or does not take what it asked for,
is cut: its request is cancelled. Pure.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from gateway.actions import ToClient
from gateway.backlog import Backlog
from tandem.messages.client import Accepted, Done, Output, Received, Resume, ResumeRefused

GRACE_S = 60.0  # how long a finished request may be resumed
DONE_EVERY_S = 2.0
RESUME_EVERY_S = 0.2  # a replay costs more than its question
STUCK_S = 10.0
PAUSE_S = 1.0  # ticks are 0.1 s apart: with more between them this process stood still
BURST = 512  # messages of one request at once: a long replay must not hold up every stream
KEEP_BYTES = 256 << 10  # of each request, acknowledged
MAX_FINISHED = 4096
MAX_FINISHED_BYTES = 64 << 20
MAX_BYTES = 512 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a client may cost. `max_backlog_bytes` is of one request."""

    silence_s: float = 30.0
    max_backlog_bytes: int = 4096 << 10
    max_bytes: int = MAX_BYTES
    max_finished: int = MAX_FINISHED
    max_finished_bytes: int = MAX_FINISHED_BYTES


@dataclass(frozen=True, slots=True)
class Cut:
    """Cancel a request whose client is gone. `owner` is who submitted it."""

    owner: bytes
    request_id: bytes
    reason: str


@dataclass(slots=True)
class Session:
    """One request's client. `owner` is the identity that submitted it, `client` the present one."""

    accepted: Accepted
    owner: bytes
    key: str | None
    client: bytes
    heard_at: float
    backlog: Backlog
    is_attached: bool = True
    resumed_at: float | None = None
    stuck_since: float | None = None
    num_chars: int = 0
    cut: str | None = None
    done: Done | None = None
    done_at: float = 0.0
    done_sent_at: float | None = None


class Sessions:
    """See the module. `key_of` names the key of an identity; None where there are no keys."""

    def __init__(self, limits: Limits, key_of: Callable[[bytes], str | None]) -> None:
        self._limits = limits
        self._key_of = key_of
        self._sessions: dict[bytes, Session] = {}
        self._of_client: dict[bytes, set[bytes]] = {}
        self._of_label: dict[tuple[bytes, str], bytes] = {}
        self._finished: dict[bytes, None] = {}  # in the order of their ends
        self._ticked_at: float | None = None
        self.num_dropped = 0
        self.num_resends = 0  # of streams from some token on, and of ends
        self.num_cuts = 0

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def num_unconfirmed(self) -> int:
        """Finished requests whose clients are there and have not confirmed the end."""
        return sum(self._sessions[request_id].is_attached for request_id in self._finished)

    # --- what comes in ----------------------------------------------------------------------

    def tell(self, client: bytes, message: msgspec.Struct, now: float) -> Iterator[ToClient]:
        """The ledger's next word to a client; gives what to send now."""
        match message:
            case Accepted():
                yield ToClient(client, self._open(client, message, now).accepted)
            case Output(request_id=request_id) | Done(request_id=request_id):
                session = self._sessions.get(request_id)
                if session is None:
                    self.num_dropped += 1
                    return
                if isinstance(message, Done):
                    self._finish(session, message, now)
                else:
                    session.backlog.add(message)
                    session.num_chars += len(message.text)
                yield from self._flush(session, now)
            case _:
                yield ToClient(client, message)

    def received(self, client: bytes, message: Received, now: float) -> Iterator[ToClient]:
        """A client says what it has."""
        session = self._own(client, message.request_id)
        if session is None:
            return
        session.heard_at = now
        if session.backlog.acknowledge(message.next_index):
            session.stuck_since = None
        if message.is_done and session.done is not None:
            self._drop(message.request_id)
            return
        if not session.is_attached and session.backlog.rewind(message.next_index):
            self._attach(session, client)
            self.num_resends += 1
        yield from self._flush(session, now)

    def resume(self, client: bytes, message: Resume, now: float) -> Iterator[ToClient]:
        """A client wants a request's stream from some token on; `Accepted` says that it comes."""
        session = self._sessions.get(message.request_id)
        if session is None or session.key != self._key_of(client):
            text = (
                "this gateway does not know the request, or not any more: finished ones are kept "
                f"for {GRACE_S:g} s. Submit it again, with `resume`"
            )
            yield ToClient(client, ResumeRefused(request_id=message.request_id, message=text))
            return
        session.heard_at = now
        if session.resumed_at is not None and now < session.resumed_at + RESUME_EVERY_S:
            self.num_dropped += 1
            return
        if not session.backlog.rewind(message.next_index):
            text = (
                f"tokens below {session.backlog.kept_from} are not kept any more: resume from "
                "there, or submit the request again"
            )
            yield ToClient(client, ResumeRefused(request_id=message.request_id, message=text))
            return
        self._attach(session, client)
        self.num_resends += 1
        session.resumed_at, session.stuck_since = now, None
        yield ToClient(client, session.accepted)
        yield from self._flush(session, now)

    def knows(self, client: bytes, label: str) -> bool:
        """Whether the request that this identity submitted under this label is still here."""
        return (client, label) in self._of_label

    def repeat(self, client: bytes, label: str, now: float) -> Iterator[ToClient]:
        """A known `Submit` came again, because its answer was late or lost: answer again."""
        session = self._own(client, self._of_label[client, label])
        if session is None:  # the client has gone on with it under another identity
            return
        session.heard_at = now
        yield ToClient(client, session.accepted)
        if not session.is_attached and session.backlog.rewind(0):
            self._attach(session, client)
            self.num_resends += 1
            yield from self._flush(session, now)

    def unreachable(self, client: bytes) -> None:
        """Nothing can be sent to this identity now; its requests go on unheard."""
        for request_id in self._of_client.get(client, ()):
            self._sessions[request_id].is_attached = False

    def owner_of(self, client: bytes, request_id: bytes, now: float) -> bytes | None:
        """Under which identity the ledger knows the client of a request that asks something."""
        session = self._own(client, request_id)
        if session is None:
            return None
        session.heard_at = now
        return session.owner

    def tick(self, now: float) -> Iterator[ToClient | Cut]:
        """Resends, cuts and forgetting; to be called every 0.1 s."""
        if self._ticked_at is not None and now - self._ticked_at > PAUSE_S:
            self._forgive(now - self._ticked_at, now)
        self._ticked_at = now
        for request_id, session in list(self._sessions.items()):
            is_silent = now - session.heard_at > self._limits.silence_s
            if session.done is None:
                yield from self._check(session, now, is_silent=is_silent)
            elif now - session.done_at > GRACE_S:
                self._drop(request_id)
            elif is_silent:
                session.is_attached = False  # the end was told often enough
            yield from self._flush(session, now)
        yield from self._make_room()

    # --- inside -----------------------------------------------------------------------------

    def _forgive(self, pause_s: float, now: float) -> None:
        """This process stood still until now: what clients said meanwhile is unread."""
        for session in self._sessions.values():
            session.heard_at = min(now, session.heard_at + pause_s)
            if session.stuck_since is not None:
                session.stuck_since = min(now, session.stuck_since + pause_s)

    def _open(self, client: bytes, accepted: Accepted, now: float) -> Session:
        session = Session(
            accepted=msgspec.structs.replace(accepted, silence_s=self._limits.silence_s),
            owner=client,
            key=self._key_of(client),
            client=client,
            heard_at=now,
            backlog=Backlog(KEEP_BYTES),
        )
        self._sessions[accepted.request_id] = session
        self._of_label[client, accepted.label] = accepted.request_id
        self._attach(session, client)
        return session

    def _own(self, client: bytes, request_id: bytes) -> Session | None:
        """The session, where this identity holds it."""
        session = self._sessions.get(request_id)
        if session is None or session.client != client:
            self.num_dropped += 1
            return None
        return session

    def _attach(self, session: Session, client: bytes) -> None:
        request_id = session.accepted.request_id
        self._leave(session)
        session.client, session.is_attached, session.done_sent_at = client, True, None
        self._of_client.setdefault(client, set()).add(request_id)

    def _leave(self, session: Session) -> None:
        held = self._of_client.get(session.client, set())
        held.discard(session.accepted.request_id)
        if not held:
            self._of_client.pop(session.client, None)

    def _drop(self, request_id: bytes) -> None:
        session = self._sessions.pop(request_id)
        self._finished.pop(request_id, None)
        self._of_label.pop((session.owner, session.accepted.label), None)
        self._leave(session)

    def _finish(self, session: Session, done: Done, now: float) -> None:
        if session.cut is not None and done.reason == "cancelled":
            done = msgspec.structs.replace(done, message=session.cut)
        session.done = msgspec.structs.replace(done, num_chars=session.num_chars)
        session.done_at = now
        self._finished[done.request_id] = None

    def _flush(self, session: Session, now: float) -> Iterator[ToClient]:
        """Send what waits, as far as the client may have it unacknowledged; then the end."""
        backlog = session.backlog
        for _ in range(BURST):
            if not session.is_attached:
                return
            piece = backlog.next_to_send(self._limits.max_backlog_bytes)
            if piece is None:
                break
            yield ToClient(session.client, piece)
        if session.done is None or not session.is_attached or not backlog.is_all_sent:
            return
        if session.done_sent_at is None or now >= session.done_sent_at + DONE_EVERY_S:
            self.num_resends += session.done_sent_at is not None
            session.done_sent_at = now
            yield ToClient(session.client, session.done)

    def _check(self, session: Session, now: float, *, is_silent: bool) -> Iterator[Cut]:
        """Cut whose client is silent, or takes nothing."""
        limits, num_bytes = self._limits, session.backlog.num_unacknowledged_bytes
        if num_bytes <= limits.max_backlog_bytes:
            session.stuck_since = None
        elif session.stuck_since is None:
            session.stuck_since = now
        if is_silent:
            text = f"its client said nothing for {limits.silence_s:g} s (--client-silence-s)"
            yield from self._cut(session, text)
        elif session.stuck_since is not None and now - session.stuck_since > STUCK_S:
            text = (
                f"its client left {num_bytes >> 10} KiB unacknowledged for {STUCK_S:g} s "
                f"(--max-client-backlog-kib allows {limits.max_backlog_bytes >> 10})"
            )
            yield from self._cut(session, text)

    def _cut(self, session: Session, reason: str) -> Iterator[Cut]:
        if session.cut is None:
            session.cut = reason
            self.num_cuts += 1
            yield Cut(session.owner, session.accepted.request_id, reason)

    def _make_room(self) -> Iterator[Cut]:
        """Keep within the bounds of all sessions together: what is finished goes first."""
        limits = self._limits
        num_finished = sum(self._sessions[each].backlog.num_bytes for each in self._finished)
        num_bytes = sum(session.backlog.num_bytes for session in self._sessions.values())
        for request_id in list(self._finished):
            is_over = num_finished > limits.max_finished_bytes or num_bytes > limits.max_bytes
            if not is_over and len(self._finished) <= limits.max_finished:
                break
            size = self._sessions[request_id].backlog.num_bytes
            num_finished, num_bytes = num_finished - size, num_bytes - size
            self._drop(request_id)
        if num_bytes <= limits.max_bytes:
            return
        for session in self._sessions.values():
            session.backlog.forget_acknowledged()
        num_bytes = sum(session.backlog.num_bytes for session in self._sessions.values())
        if num_bytes > limits.max_bytes:
            largest = max(self._sessions.values(), key=lambda s: s.backlog.num_bytes)
            text = f"it holds {largest.backlog.num_bytes >> 10} KiB, the most of all, and together "
            yield from self._cut(largest, text + "they hold too much for this gateway")
