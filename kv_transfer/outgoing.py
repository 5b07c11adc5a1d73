"""The writer's side of every hand-off of a node: reserve, write, commit, drain. Pure.

A transfer's source pages may be reused once `SourceReleased` came: exactly once per `start`, and
only when no copy runs or will run. `Drained` is final: after it nothing is written under its key.
A guest that calls `cancel` gets no `TransferFailed`.
"""

from collections import OrderedDict
from collections.abc import Sequence

from kv_transfer.actions import (
    BulkEvent,
    Committed,
    FirstToken,
    Granted,
    OutgoingAction,
    PagesWritten,
    Parked,
    SendToOwner,
    SourceReleased,
    StopWriting,
    TransferFailed,
    TransferKey,
    WriteFailed,
    WritePages,
)
from kv_transfer.departures import Departure, OutgoingPhase, explain_grant
from tandem.frames import Blob
from tandem.messages.common import ErrorCode, NodeRef
from tandem.messages.handoff import (
    Commit,
    CommitAck,
    Drained,
    DrainedAck,
    FromOwner,
    Grant,
    Progress,
    Reserve,
    ReserveDenied,
    ReserveQueued,
    Revoke,
)
from tandem.outbox import Outbox

ANSWER_S = 10.0  # an owner answers each Reserve, repeated every 2 s at the most
MAX_LISTENED_S = 1.0  # per tick: what came during a long step of ours is not yet handled after it
BEAT_S = 1.0  # a progress report per second renews the grant's lease while the prompt computes
MAX_CHUNKS = 2048  # what a Commit may list
MAX_ENDED = 16_384  # keys under which nothing may ever be written again


class OutgoingTransfers:
    """All transfers of one node towards other nodes' pools.

    Every method returns what the shell has to do, in order. `num_ignored` counts late, duplicate,
    stale and unknown messages; none of them does harm.
    """

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._live: dict[TransferKey, Departure] = {}
        self._ended: OrderedDict[TransferKey, None] = OrderedDict()
        self._owners: dict[str, NodeRef] = {}
        # At most one message per key waits for an answer: Reserve, then Commit, or else Drained.
        self._outbox: Outbox[TransferKey, str] = Outbox()
        self._actions: list[OutgoingAction] = []
        self._ticked_at: float | None = None
        self._listened_s = 0.0
        self.num_ignored = 0

    def start(
        self,
        key: TransferKey,
        owner: NodeRef,
        *,
        num_tokens: int,
        max_total_tokens: int,
        sequence: int,
        deadline_s: float | None,
        page_hashes: bytes,
        now: float,
    ) -> list[OutgoingAction]:
        """Ask `owner` for pages for `num_tokens` tokens. Each attempt is started once."""
        assert key not in self._live, key
        known = self._owners.get(owner.node_id, owner)
        is_same = known.incarnation == owner.incarnation
        if key in self._ended or (not is_same and known.epoch > owner.epoch):
            code: ErrorCode = "cancelled" if key in self._ended else "node_failed"
            reason = f"{owner.node_id} at epoch {owner.epoch} takes nothing more for this attempt"
            self._actions += [TransferFailed(key, code, reason), SourceReleased(key)]
            return self._take(now)
        if not is_same:
            self._lose(owner.node_id, "another process took its place", now)
        elif known.epoch > owner.epoch:
            owner = known  # the same process, admitted anew since: after a coordinator's restart
        self._owners[owner.node_id] = owner
        deadline = None if deadline_s is None else now + deadline_s
        num_pages = -(-num_tokens // self._page_size)
        self._live[key] = Departure(
            key, owner, num_tokens, num_pages, deadline, heard_at=self._listened_s
        )
        reserve = Reserve(
            request_id=key[0],
            attempt=key[1],
            num_tokens=num_tokens,
            max_total_tokens=max_total_tokens,
            sequence=sequence,
            deadline_s=deadline_s,
            page_hashes=Blob(page_hashes),
        )
        self._outbox.send(key, owner.node_id, reserve, now)
        return self._take(now)

    def pages_computed(
        self, key: TransferKey, source_pages: Sequence[int], now: float
    ) -> list[OutgoingAction]:
        """Tell all source pages that are complete so far, in prompt order."""
        transfer = self._live.get(key)
        if transfer is None or transfer.phase is OutgoingPhase.STOPPING:
            return self._take(now)  # it failed meanwhile; the guest was told
        assert len(source_pages) >= len(transfer.source_pages), "complete pages stay complete"
        assert len(source_pages) <= transfer.num_pages, len(source_pages)
        transfer.source_pages = tuple(source_pages)
        self._advance(transfer, now)
        return self._take(now)

    def finish(
        self,
        key: TransferKey,
        source_pages: Sequence[int],
        first_token: FirstToken,
        now: float,
    ) -> list[OutgoingAction]:
        """The prompt is computed: all source pages, the partial last one included, and token 0."""
        transfer = self._live.get(key)
        if transfer is None or transfer.phase is OutgoingPhase.STOPPING:
            return self._take(now)
        assert len(source_pages) == transfer.num_pages, len(source_pages)
        transfer.first_token = first_token
        transfer.source_pages = tuple(source_pages)
        self._advance(transfer, now)
        return self._take(now)

    def cancel(self, key: TransferKey, now: float) -> list[OutgoingAction]:
        """The guest wants no transfer (any more), in whatever phase, or before it started."""
        transfer = self._live.get(key)
        if transfer is None:
            self._remember_ended(key)
        else:
            self._stop(transfer, now)
        return self._take(now)

    def handle(self, owner_id: str, message: FromOwner, now: float) -> list[OutgoingAction]:
        """A message on the link to `owner_id`; the handshake is the shell's business."""
        match message:
            case Grant() | Revoke() | CommitAck() | ReserveDenied() | ReserveQueued():
                key = (message.request_id, message.attempt)
                transfer = self._live.get(key)
                if transfer is None:
                    self._answer_unknown(owner_id, key, message, now)
                elif transfer.owner.node_id != owner_id:
                    self.num_ignored += 1
                else:
                    self._answer(transfer, message, now)
            case DrainedAck():
                key = (message.request_id, message.attempt)
                told = key not in self._live and self._outbox.acknowledge(key)
                self.num_ignored += not told
            case _:
                self.num_ignored += 1
        return self._take(now)

    def bulk_event(self, event: BulkEvent, now: float) -> list[OutgoingAction]:
        """A copy returned, or will not run: nothing touches its source and target pages now."""
        if not isinstance(event, PagesWritten | WriteFailed):
            return self._take(now)
        first = event.chunk.first if isinstance(event, PagesWritten) else event.first
        transfer = self._live.get(event.key)
        if transfer is None or transfer.writing.pop(first, None) is None:
            self.num_ignored += 1
            return self._take(now)
        if transfer.phase is OutgoingPhase.STOPPING:
            if not transfer.writing:
                self._end(transfer, now)
        elif isinstance(event, PagesWritten):
            transfer.chunks[first] = event.chunk
            self._advance(transfer, now)
        else:
            self._fail(transfer, "transfer_failed", event.reason, now)
        return self._take(now)

    def peer_lost(
        self,
        owner_id: str,
        now: float,
        reason: str | None = None,
        *,
        incarnation: int | None = None,
    ) -> list[OutgoingAction]:
        """The link to a node is given up: its transfers fail, for `reason`; nothing is resent.

        With `incarnation`, only where that process is still the one that transfers go to: the loss
        of a predecessor is heard of after its successor was met.
        """
        known = self._owners.get(owner_id)
        if known is None or incarnation in (None, known.incarnation):
            self._lose(owner_id, reason or "the link broke", now)
        return self._take(now)

    def tick(self, now: float) -> list[OutgoingAction]:
        """Resends, silence, deadlines and beats; call it a few times per second."""
        since = now if self._ticked_at is None else self._ticked_at
        self._listened_s += min(now - since, MAX_LISTENED_S)
        self._ticked_at = now
        for transfer in list(self._live.values()):
            if transfer.phase is OutgoingPhase.STOPPING:
                continue
            if transfer.deadline is not None and now >= transfer.deadline:
                reason = f"the hand-off to {transfer.owner.node_id} did not end before the deadline"
                self._fail(transfer, "deadline_exceeded", reason, now)
            elif transfer.phase is OutgoingPhase.RESERVING:
                if self._listened_s - transfer.heard_at >= ANSWER_S:
                    self._fail_unanswered(transfer, now)
            elif transfer.phase is OutgoingPhase.WRITING and now >= transfer.next_beat:
                self._beat(transfer, now)
        return self._take(now)

    def live(self) -> dict[TransferKey, OutgoingPhase]:
        """Transfers whose source pages are held or whose outcome is open."""
        return {key: transfer.phase for key, transfer in self._live.items()}

    @property
    def num_unacknowledged(self) -> int:
        """Messages that some owner has not answered yet."""
        return len(self._outbox)

    # --- what messages do ------------------------------------------------------------------------

    def _answer_unknown(
        self, owner_id: str, key: TransferKey, message: FromOwner, now: float
    ) -> None:
        """Nothing is or will be written under the key: say so where the owner may doubt it."""
        self.num_ignored += 1
        if isinstance(message, Grant | Revoke) and owner_id in self._owners:
            self._remember_ended(key)
            self._tell_drained(owner_id, key, now)

    def _answer(self, transfer: Departure, message: FromOwner, now: float) -> None:
        phase = transfer.phase
        transfer.heard_at = self._listened_s
        match message:
            case ReserveQueued() if phase is OutgoingPhase.RESERVING:
                # The Reserve stays in the outbox: asking again keeps its place alive.
                self._actions.append(Parked(transfer.key))
            case Grant() if phase is OutgoingPhase.RESERVING:
                self._accept(transfer, message, now)
            case ReserveDenied() if phase is OutgoingPhase.RESERVING:
                transfer.owner_lives = False  # there is no grant to drain
                self._fail(transfer, message.code, message.message, now)
            case CommitAck() if phase is OutgoingPhase.COMMITTING and message.error is None:
                self._actions.append(Committed(transfer.key))
                self._outbox.acknowledge(transfer.key)
                del self._live[transfer.key]
                self._remember_ended(transfer.key)
            case CommitAck() if phase is OutgoingPhase.COMMITTING:
                self._fail(transfer, "transfer_failed", message.error or "", now)
            case Revoke() if phase is not OutgoingPhase.STOPPING:
                reason = f"{transfer.owner.node_id} withdrew the attempt"
                self._fail(transfer, "transfer_failed", reason, now)
            case _:
                self.num_ignored += 1

    def _accept(self, transfer: Departure, grant: Grant, now: float) -> None:
        self._outbox.acknowledge(transfer.key)
        problem = explain_grant(grant, transfer, self._page_size)
        if problem is not None:
            self._fail(transfer, "transfer_failed", problem, now)
            return
        transfer.grant_id = grant.grant_id
        transfer.num_skipped = grant.num_cached_tokens // self._page_size
        transfer.target_pages = tuple(grant.page_indices.array.tolist())
        transfer.phase = OutgoingPhase.WRITING
        transfer.next_beat = now + BEAT_S
        self._actions.append(Granted(transfer.key))
        self._advance(transfer, now)

    # --- steps of a transfer ---------------------------------------------------------------------

    def _advance(self, transfer: Departure, now: float) -> None:
        """Write what can be written; commit when all of it is there."""
        if transfer.phase is not OutgoingPhase.WRITING:
            return
        first = transfer.num_asked
        ready = transfer.source_pages[transfer.num_skipped + first :]
        num_chunks = len(transfer.chunks) + len(transfer.writing)
        # The last place in the Commit's list is kept for all that remains at the end.
        if ready and (num_chunks < MAX_CHUNKS - 1 or transfer.first_token is not None):
            transfer.num_asked += len(ready)
            transfer.writing[first] = len(ready)
            targets = transfer.target_pages[first : transfer.num_asked]
            self._actions.append(
                WritePages(transfer.key, transfer.owner, transfer.grant_id, first, ready, targets)
            )
            if first == 0:
                self._beat(transfer, now)
        if transfer.is_written:
            self._commit(transfer, now)

    def _commit(self, transfer: Departure, now: float) -> None:
        assert transfer.first_token is not None
        transfer.phase = OutgoingPhase.COMMITTING
        commit = Commit(
            request_id=transfer.key[0],
            attempt=transfer.key[1],
            grant_id=transfer.grant_id,
            num_tokens=transfer.num_tokens,
            chunks=tuple(transfer.chunks[first] for first in sorted(transfer.chunks)),
            first_token_id=transfer.first_token.token_id,
            first_logprobs=transfer.first_token.logprobs,
            report=transfer.first_token.report,
        )
        self._outbox.send(transfer.key, transfer.owner.node_id, commit, now)
        self._actions.append(SourceReleased(transfer.key))

    def _beat(self, transfer: Departure, now: float) -> None:
        transfer.next_beat = now + BEAT_S
        progress = Progress(
            request_id=transfer.key[0],
            attempt=transfer.key[1],
            grant_id=transfer.grant_id,
            num_pages_written=transfer.num_asked,
        )
        self._actions.append(SendToOwner(transfer.owner, progress))

    def _fail(self, transfer: Departure, code: ErrorCode, message: str, now: float) -> None:
        self._actions.append(TransferFailed(transfer.key, code, message[:2000]))
        self._stop(transfer, now)

    def _fail_unanswered(self, transfer: Departure, now: float) -> None:
        owner = transfer.owner
        reason = (
            f"{owner.node_id} at {owner.control_address} does not answer: check --advertised-host "
            "and the firewall"
        )
        # No Drained, which would be resent for good: a grant that we never heard of ends by its
        # lease, and the Revoke that follows is answered.
        transfer.owner_lives = False
        self._fail(transfer, "node_failed", reason, now)

    def _stop(self, transfer: Departure, now: float) -> None:
        """Write nothing more; the end comes when the last copy returned."""
        if transfer.phase is OutgoingPhase.STOPPING:
            return
        self._outbox.acknowledge(transfer.key)
        if transfer.writing:
            transfer.phase = OutgoingPhase.STOPPING
            self._actions.append(StopWriting(transfer.key))
        else:
            self._end(transfer, now)

    def _end(self, transfer: Departure, now: float) -> None:
        if transfer.phase is not OutgoingPhase.COMMITTING:
            self._actions.append(SourceReleased(transfer.key))
        del self._live[transfer.key]
        self._remember_ended(transfer.key)
        if transfer.owner_lives:
            self._tell_drained(transfer.owner.node_id, transfer.key, now)

    def _lose(self, owner_id: str, reason: str, now: float) -> None:
        """Should the owner live after all, it asks by Revoke and is told Drained then."""
        self._outbox.drop_destination(owner_id)
        for transfer in list(self._live.values()):
            if transfer.owner.node_id == owner_id and transfer.owner_lives:
                transfer.owner_lives = False
                if transfer.phase is not OutgoingPhase.STOPPING:
                    self._fail(transfer, "node_failed", f"lost {owner_id}: {reason}", now)

    def _tell_drained(self, owner_id: str, key: TransferKey, now: float) -> None:
        self._outbox.send(key, owner_id, Drained(request_id=key[0], attempt=key[1]), now)

    def _remember_ended(self, key: TransferKey) -> None:
        self._ended[key] = None
        self._ended.move_to_end(key)
        while len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)

    def _take(self, now: float) -> list[OutgoingAction]:
        for owner_id, message in self._outbox.due(now):
            self._actions.append(SendToOwner(self._owners[owner_id], message))
        actions, self._actions = self._actions, []
        return actions
