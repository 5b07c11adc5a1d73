"""The owner's side of every hand-off of a node: grant, verify, take; or withdraw and drain. Pure.

Pages that a remote writer may still touch are never freed. They leave DRAINING or QUARANTINED when
this node's own receiver is closed *and* the writer is known to have stopped: it said `Drained`, it
committed, its transport writes only through that receiver, or its process is proved dead. No
time-out frees a page. Matched prefix pages, which a writer may read, are held as long.
Every attempt whose Reserve was heard ends for the guest in exactly one of `Arrived`,
`ArrivalFailed`, or the guest's own `cancel`.
"""

from collections import OrderedDict

import msgspec

from kv_transfer import replies
from kv_transfer.actions import (
    ArrivalFailed,
    Arrived,
    BulkEvent,
    CloseGrant,
    FirstToken,
    GrantClosed,
    IncomingAction,
    PagesVerified,
    ReplyToWriter,
    TransferKey,
    VerifyPages,
    WriterGone,
)
from kv_transfer.arrivals import (
    Arrival,
    ArrivalPhase,
    ArrivalTable,
    explain_commit,
    explain_reserve,
)
from kv_transfer.fencing import Fencing, Incarnations
from kv_transfer.granting import Granting, open_grant
from node.ledger import PageState
from node.page_pool import PagePool
from scheduling.liveness import is_wedged
from tandem.layout import KVLayout
from tandem.messages.common import ErrorCode
from tandem.messages.handoff import (
    Commit,
    CommitAck,
    Drained,
    FromWriter,
    Progress,
    Reserve,
    WriterHello,
)
from tandem.outbox import Outbox

LEASE_S = 20.0  # writers beat each second, but between steps: one on a busy CPU takes several
UNCOMMITTED = (ArrivalPhase.QUEUED, ArrivalPhase.OPEN)
MAX_ANSWERS = 4096  # commits answered, remembered for writers that did not hear it


class IncomingTransfers:
    """All transfers of other nodes into this node's pool.

    Every method returns what the shell has to do, in order (a Grant must not be sent before its
    `OpenGrant` was handed to the bulk thread). `lease_s`: silence after which a writer's grant is
    withdrawn. `max_draining_pages`: a writer that leaves more undrained gets no new grants.
    `num_ignored` counts late, duplicate, stale and unknown messages, `num_past` those of
    processes that ended or whose name a newer one has.
    """

    def __init__(
        self,
        pool: PagePool,
        layout: KVLayout,
        *,
        incarnation: int,
        lease_s: float = LEASE_S,
        max_draining_pages: int | None = None,
    ) -> None:
        self._pool = pool
        self._ledger = pool.ledger
        self._layout = layout
        self._lease_s = lease_s
        cap = max_draining_pages or max(1, self._ledger.num_pages // 4)
        self._granting = Granting(pool, layout, incarnation=incarnation, max_draining_pages=cap)
        self._fencing = Fencing(cap)
        self._incarnation = incarnation
        self._incarnations = Incarnations()
        self._table = ArrivalTable()
        self._answers: OrderedDict[TransferKey, CommitAck] = OrderedDict()
        self._revokes: Outbox[TransferKey, bytes] = Outbox()
        self._actions: list[IncomingAction] = []
        self.num_ignored = 0
        self.num_past = 0

    # --- what the node tells ---------------------------------------------------------------------

    def handle(self, writer: bytes, message: FromWriter, now: float) -> list[IncomingAction]:
        """A message of the writer with this routing identity; the shell answers its greetings."""
        if not (isinstance(message, WriterHello) and is_wedged(message)):
            self._fencing.heard(writer)
        is_past = self._incarnations.is_past(writer)
        if is_past and not isinstance(message, WriterHello | Drained):  # Drained is true at any age
            self.num_past += 1
            return self._take(now)
        match message:
            case WriterHello(epoch=epoch):
                self._greeted(writer, epoch, now)
            case Reserve(owner_incarnation=self._incarnation):  # not one for a predecessor
                self._reserve(writer, message, now)
            case Commit():
                self._commit(writer, message, now)
            case Drained():
                self._drained(writer, message, now)
            case Progress():
                self._progress(writer, message, now)
        return self._take(now)

    def cancel(self, key: TransferKey, now: float) -> list[IncomingAction]:
        """The guest ends this attempt and all earlier ones, heard of or not; idempotent."""
        self._table.end(key)
        for arrival in self._table.of_request(key[0], up_to=key[1]):
            self._withdraw(arrival, "cancelled", "the decode node ended the attempt", now)
        return self._take(now)

    def pages_freed(self, now: float) -> list[IncomingAction]:
        """The guest gave pages back: serve the oldest waiting reserves."""
        return self._take(now)

    def bulk_event(self, event: BulkEvent, now: float) -> list[IncomingAction]:
        """What the bulk thread reports about grants."""
        if isinstance(event, PagesVerified):
            arrival = self._table.get(event.key)
            is_current = arrival is self._table.of_grant(event.grant_id)
            if arrival is not None and is_current and arrival.phase is ArrivalPhase.VERIFYING:
                self._verified(arrival, event.error, now)
            else:
                self.num_ignored += 1
        elif isinstance(event, GrantClosed):
            arrival = self._table.of_grant(event.grant_id)
            if arrival is not None and arrival.phase is ArrivalPhase.DRAINING:
                arrival.is_closed = True
                arrival.writer_stopped |= event.remote_writer_stopped
                self._free_if_drained(arrival)
        elif isinstance(event, WriterGone):
            self._writer_gone(event.writer, now)
        return self._take(now)

    def tick(self, now: float) -> list[IncomingAction]:
        """Resends, leases, deadlines; call it a few times per second, also with nothing to do."""
        for arrival in self._table.all():
            silent_s = now - arrival.heard_at
            if arrival.phase is ArrivalPhase.QUEUED:
                if arrival.deadline is not None and now >= arrival.deadline:
                    reason = "no pages became free before the deadline"
                    self._fail(arrival, "deadline_exceeded", reason, now)
                elif silent_s > self._lease_s:
                    self._fail(arrival, "node_failed", "the prefill node asks no more", now)
            elif silent_s > self._lease_s and arrival.writer_lives:
                arrival.writer_lives = False  # what it still says is answered without a record
                if arrival.phase is not ArrivalPhase.DRAINING:
                    reason = f"the prefill node was silent for {silent_s:.1f} s: grant withdrawn"
                    self._fail(arrival, "node_failed", reason, now)
                self._forget_if_drained(arrival)
        wanted = bool(self._table.waiting()) or self._pool.is_short
        self._actions += self._fencing.tick(now, self._table.num_draining(), pages_wanted=wanted)
        return self._take(now)

    def live(self) -> dict[TransferKey, ArrivalPhase]:
        """Attempts that wait, hold pages, or whose writer has not yet drained."""
        return {arrival.key: arrival.phase for arrival in self._table.all()}

    def phase(self, key: TransferKey) -> ArrivalPhase | None:
        """Where a live attempt is."""
        arrival = self._table.get(key)
        return None if arrival is None else arrival.phase

    @property
    def num_open(self) -> int:
        """Attempts whose end a drain waits for: all but withdrawn ones of writers given up.

        Pages that such a writer had mapped stay DRAINING in `live`, maybe for good.
        """
        draining = ArrivalPhase.DRAINING
        return sum(a.phase is not draining or a.writer_lives for a in self._table.all())

    # --- what messages do ------------------------------------------------------------------------

    def _greeted(self, writer: bytes, epoch: int, now: float) -> None:
        """A newer process ends what an older one of its name began, but proves no page free."""
        older = self._incarnations.greeted(writer, epoch)
        for arrival in [] if older is None else self._table.of_writer(older):
            if arrival.phase in UNCOMMITTED:
                reason = "another process took the prefill node's place during the hand-off"
                self._fail(arrival, "node_failed", reason, now)

    def _writer_gone(self, writer: bytes, now: float) -> None:
        """What it committed is verified all the same; nothing else of it is waited for."""
        self._incarnations.gone(writer)
        num_freed = self._table.num_draining()[writer]
        for arrival in self._table.of_writer(writer):
            arrival.writer_stopped = arrival.writer_told = True
            arrival.writer_lives = False
            self._revokes.acknowledge(arrival.key)
            if arrival.phase in UNCOMMITTED:
                reason = "the prefill node's process ended during the hand-off"
                self._fail(arrival, "node_failed", reason, now)
            elif arrival.phase is ArrivalPhase.DRAINING:
                self._free_if_drained(arrival)
        if num_freed:
            text = f"has ended: {num_freed} pages that it might have written to are free of it"
            self._actions += self._fencing.notice(writer, "gone", text, now)

    def _reserve(self, writer: bytes, message: Reserve, now: float) -> None:
        key = (message.request_id, message.attempt)
        arrival = self._table.get(key)
        if arrival is not None:
            self._reserve_again(writer, arrival, now)
            return
        if self._table.has_ended(key):
            text = "the attempt is over at the decode node"
            self._reply(writer, replies.denied(key, "cancelled", text))
            return
        problem = explain_reserve(message, self._layout, self._ledger.num_pages)
        if problem is not None:
            self._table.end(key)
            self._reply(writer, replies.denied(key, *problem))
            self._actions.append(ArrivalFailed(key, *problem))
            return
        for older in self._table.of_request(key[0], up_to=key[1] - 1):
            self._fail(older, "cancelled", f"attempt {key[1]} took its place", now)
        self._table.end((key[0], key[1] - 1))
        arrival = Arrival(key, writer, message, now)
        self._table.add(arrival)
        self._grant_waiting(now)
        if arrival.phase is ArrivalPhase.QUEUED:
            self._reply(writer, replies.queued(key))

    def _reserve_again(self, writer: bytes, arrival: Arrival, now: float) -> None:
        if arrival.writer != writer or arrival.phase not in UNCOMMITTED:
            self.num_ignored += 1
            return
        arrival.heard_at = now
        if arrival.phase is ArrivalPhase.OPEN:
            self._send_grant(arrival)
        else:
            self._reply(writer, replies.queued(arrival.key))

    def _progress(self, writer: bytes, message: Progress, now: float) -> None:
        arrival = self._table.of_grant(message.grant_id)
        if arrival is None or arrival.writer != writer or arrival.phase is not ArrivalPhase.OPEN:
            self.num_ignored += 1
            return
        arrival.heard_at = now
        if message.num_pages_written and not arrival.is_filling:
            arrival.is_filling = True
            self._ledger.move(arrival.pages, PageState.FILLING)

    def _commit(self, writer: bytes, message: Commit, now: float) -> None:
        key = (message.request_id, message.attempt)
        arrival = self._table.get(key)
        if key in self._answers:
            self.num_ignored += 1
            self._reply(writer, self._answers[key])
        elif arrival is None:
            reason = f"grant {message.grant_id} is unknown: withdrawn, or of an earlier process"
            self._reply(writer, replies.commit_answered(key, message.grant_id, reason))
        elif arrival.writer != writer or arrival is not self._table.of_grant(message.grant_id):
            self.num_ignored += 1
        elif arrival.phase is ArrivalPhase.OPEN:
            arrival.heard_at, arrival.commit = now, message
            arrival.writer_stopped = True  # a writer commits when all its copies returned
            problem = explain_commit(message, arrival)
            if problem is not None:
                self._refuse(arrival, problem, now)
                return
            arrival.phase = ArrivalPhase.VERIFYING
            self._actions.append(VerifyPages(key, arrival.grant_id, arrival.pages, message.chunks))
        elif arrival.phase is ArrivalPhase.DRAINING:
            arrival.writer_stopped = True
            self._free_if_drained(arrival)
        else:
            arrival.heard_at = now
            self.num_ignored += 1

    def _drained(self, writer: bytes, message: Drained, now: float) -> None:
        key = (message.request_id, message.attempt)
        self._reply(writer, replies.drain_noted(key))
        arrival = self._table.get(key)
        if arrival is None or arrival.writer != writer:
            self.num_ignored += 1
            return
        arrival.writer_stopped = True
        arrival.writer_told = True
        self._revokes.acknowledge(key)
        if arrival.phase in UNCOMMITTED:
            reason = "the prefill node gave the attempt up"
            self._fail(arrival, "cancelled", reason, now)
        elif arrival.phase is ArrivalPhase.DRAINING:
            self._free_if_drained(arrival)

    # --- steps of a transfer ---------------------------------------------------------------------

    def _grant_waiting(self, now: float) -> None:
        for arrival in self._granting.open_next(self._table, now):
            self._actions.append(open_grant(arrival))
            self._send_grant(arrival)

    def _send_grant(self, arrival: Arrival) -> None:
        self._reply(arrival.writer, replies.granted(arrival, self._layout.page_size))

    def _verified(self, arrival: Arrival, error: str | None, now: float) -> None:
        if error is not None:
            self._refuse(arrival, error, now)
            return
        commit = arrival.commit
        assert commit is not None
        self._ledger.move(arrival.pages, PageState.READY)
        self._actions.append(CloseGrant(arrival.grant_id))
        self._answer_commit(arrival, None)
        first = FirstToken(commit.first_token_id, commit.first_logprobs, commit.report)
        self._actions.append(
            Arrived(
                key=arrival.key,
                pages=arrival.cached_pages + arrival.pages,
                num_promised=arrival.num_promised,
                num_tokens=arrival.num_tokens,
                num_bytes=len(arrival.pages) * self._layout.page_bytes,
                first_token=first,
                cached_hashes=arrival.cached_hashes,
            )
        )
        self._table.remove(arrival)
        self._table.end(arrival.key)

    def _refuse(self, arrival: Arrival, problem: str, now: float) -> None:
        """The commit does not hold: keep the pages out of use until the writer has drained."""
        self._answer_commit(arrival, problem)
        # Its Commit promised what was not so; only Drained, or the receiver, is proof now.
        arrival.writer_stopped = arrival.writer_told
        arrival.is_suspect = True
        text = f"sent pages that do not verify, {len(arrival.pages)} are quarantined: {problem}"
        self._actions += self._fencing.notice(arrival.writer, "quarantine", text[:500], now)
        self._fail(arrival, "transfer_failed", problem, now)

    def _fail(self, arrival: Arrival, code: ErrorCode, message: str, now: float) -> None:
        """Tell the guest, unless it knows, and take the attempt out of use."""
        if arrival.phase is not ArrivalPhase.DRAINING:
            self._actions.append(ArrivalFailed(arrival.key, code, message[:2000]))
        self._withdraw(arrival, code, message, now)

    def _withdraw(self, arrival: Arrival, code: ErrorCode, message: str, now: float) -> None:
        self._table.end(arrival.key)
        if arrival.phase is ArrivalPhase.QUEUED:
            if not arrival.writer_told:
                self._reply(arrival.writer, replies.denied(arrival.key, code, message))
            self._table.remove(arrival)
        elif arrival.phase is not ArrivalPhase.DRAINING:
            state = PageState.QUARANTINED if arrival.is_suspect else PageState.DRAINING
            self._ledger.move(arrival.pages, state)
            self._ledger.drain(arrival.cached_pages)
            self._pool.forgo(arrival.key, arrival.num_promised)
            arrival.phase = ArrivalPhase.DRAINING
            arrival.heard_at = now  # it has another lease to say Drained
            self._actions.append(CloseGrant(arrival.grant_id))
            if not arrival.writer_told:
                revoke = replies.revoked(arrival.key)
                self._revokes.send(arrival.key, arrival.writer, revoke, now)

    def _free_if_drained(self, arrival: Arrival) -> None:
        if arrival.num_held and arrival.is_closed and arrival.writer_stopped:
            self._pool.release(arrival.pages + arrival.cached_pages)
            arrival.pages = arrival.cached_pages = ()
        self._forget_if_drained(arrival)

    def _forget_if_drained(self, arrival: Arrival) -> None:
        """The record stays while pages are held, or a living writer has not confirmed the end."""
        if arrival.phase is not ArrivalPhase.DRAINING or arrival.num_held:
            return
        if arrival.writer_told or not arrival.writer_lives:
            self._revokes.acknowledge(arrival.key)
            self._table.remove(arrival)

    # --- answers ---------------------------------------------------------------------------------

    def _answer_commit(self, arrival: Arrival, error: str | None) -> None:
        answer = replies.commit_answered(arrival.key, arrival.grant_id, error)
        self._answers[arrival.key] = answer
        if len(self._answers) > MAX_ANSWERS:
            self._answers.popitem(last=False)
        self._reply(arrival.writer, answer)

    def _reply(self, writer: bytes, message: msgspec.Struct) -> None:
        self._actions.append(ReplyToWriter(writer, message))

    def _take(self, now: float) -> list[IncomingAction]:
        self._grant_waiting(now)
        self._actions += [ReplyToWriter(w, m) for w, m in self._revokes.due(now)]
        actions, self._actions = self._actions, []
        return actions
