"""The writer's side of every hand-off of a node: reserve, read, write, commit, drain. Pure.

A transfer's source pages may be reused once `SourceReleased` came: exactly once per `start`, and
only when no copy from or to them runs or will run. `Drained` is final: after it nothing is written
or read under its key. A guest that calls `cancel` gets no `TransferFailed`.
"""

from collections import OrderedDict
from collections.abc import Sequence

from kv_transfer import requests
from kv_transfer.actions import (
    Committed,
    FirstToken,
    Granted,
    OutgoingAction,
    PagesRead,
    PagesWritten,
    Parked,
    ReadEnded,
    ReadFailed,
    ReadPages,
    SendToOwner,
    SourceReleased,
    StopWriting,
    TransferFailed,
    TransferKey,
    WriterEvent,
)
from kv_transfer.departures import Departure, OutgoingPhase, explain_grant
from kv_transfer.known_owners import KnownOwners
from kv_transfer.last_words import LastWords
from kv_transfer.listening import ListenedTime
from tandem.frames import Blob
from tandem.messages.common import ErrorCode, NodeRef
from tandem.messages.handoff import (
    CommitAck,
    DrainedAck,
    FromOwner,
    Grant,
    Reserve,
    ReserveDenied,
    ReserveQueued,
    Revoke,
)
from tandem.outbox import Outbox

ANSWER_S = 10.0  # an owner answers each Reserve, repeated every 2 s at the most
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
        self._owners = KnownOwners()
        # At most one message per key waits for an answer: Reserve, then Commit, or else Drained.
        self._outbox: Outbox[TransferKey, str] = Outbox()
        self._last_words = LastWords()  # Drained messages to owners that are lost
        self._actions: list[OutgoingAction] = []
        self._listened = ListenedTime()
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
        gateway: bytes,
        now: float,
    ) -> list[OutgoingAction]:
        """Ask `owner` for pages for `num_tokens` tokens. Each attempt is started once."""
        assert key not in self._live, key
        known = self._owners.get(owner.node_id) or owner
        is_same = known.incarnation == owner.incarnation
        if key in self._ended or (not is_same and known.epoch > owner.epoch):
            code: ErrorCode = "cancelled" if key in self._ended else "node_failed"
            reason = f"{owner.node_id} at epoch {owner.epoch} takes nothing more for this attempt"
            self._actions += [TransferFailed(key, code, reason), SourceReleased(key)]
            return self._take(now)
        if not is_same:
            self._lose(owner.node_id, "another process took its place", now, may_return=False)
        elif known.epoch > owner.epoch:
            owner = known  # the same process, admitted anew since: after a coordinator's restart
        self._owners.note(owner, self._live.values(), self._outbox)
        deadline = None if deadline_s is None else now + deadline_s
        num_pages = -(-num_tokens // self._page_size)
        self._live[key] = Departure(
            key, owner, num_tokens, num_pages, deadline, heard_at=self._listened.now_s
        )
        reserve = Reserve(
            request_id=key[0],
            attempt=key[1],
            owner_incarnation=owner.incarnation,
            num_tokens=num_tokens,
            max_total_tokens=max_total_tokens,
            sequence=sequence,
            deadline_s=deadline_s,
            page_hashes=Blob(page_hashes),
            gateway=gateway,
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

    def read(
        self, key: TransferKey, first: int, own_pages: Sequence[int], now: float
    ) -> list[OutgoingAction]:
        """Fill `own_pages` with what the owner has cached from page `first` on.

        To be called once, after `Granted` and before anything was computed; ends in `ReadEnded`,
        or, for a transfer that ends before, in its `SourceReleased`.
        """
        transfer = self._live[key]
        assert transfer.phase is OutgoingPhase.WRITING, transfer.phase
        owner_pages = transfer.cached_pages[first : first + len(own_pages)]
        assert len(owner_pages) == len(own_pages) > 0
        transfer.is_reading = True
        read = ReadPages(key, transfer.owner, transfer.grant_id, owner_pages, tuple(own_pages))
        self._actions.append(read)
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
                self.num_ignored += not (self._last_words.acknowledge(key) or told)
            case _:
                self.num_ignored += 1
        return self._take(now)

    def bulk_event(self, event: WriterEvent, now: float) -> list[OutgoingAction]:
        """A copy returned, or will not run: nothing touches its source and target pages now."""
        transfer = self._live.get(event.key)
        if transfer is None or not transfer.end_copy(event):
            self.num_ignored += 1
        elif transfer.phase is OutgoingPhase.STOPPING:
            if not transfer.is_busy:
                self._end(transfer, now)
        elif isinstance(event, PagesRead | ReadFailed):
            seconds = event.seconds if isinstance(event, PagesRead) else None
            self._actions.append(ReadEnded(event.key, seconds))
        elif isinstance(event, PagesWritten):
            transfer.chunks[event.chunk.first] = event.chunk
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
        self._listened.tick(now)
        for transfer in list(self._live.values()):
            if transfer.phase in (OutgoingPhase.COMMITTING, OutgoingPhase.STOPPING):
                continue  # nothing is left to give up: the owner says how it ends
            if transfer.deadline is not None and now >= transfer.deadline:
                reason = f"the hand-off to {transfer.owner.node_id} did not end before the deadline"
                self._fail(transfer, "deadline_exceeded", reason, now)
            elif transfer.phase is OutgoingPhase.RESERVING:
                if self._listened.now_s - transfer.heard_at >= ANSWER_S:
                    self._fail_unanswered(transfer, now)
            elif now >= transfer.next_beat:
                self._beat(transfer, now)
        return self._take(now)

    def live(self) -> dict[TransferKey, OutgoingPhase]:
        """Transfers whose source pages are held or whose outcome is open."""
        return {key: transfer.phase for key, transfer in self._live.items()}

    def phase(self, key: TransferKey) -> OutgoingPhase | None:
        """Where a live transfer is."""
        transfer = self._live.get(key)
        return None if transfer is None else transfer.phase

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
            self._outbox.send(key, owner_id, requests.drained(key), now)

    def _answer(self, transfer: Departure, message: FromOwner, now: float) -> None:
        phase = transfer.phase
        transfer.heard_at = self._listened.now_s
        match message:
            case ReserveQueued() if phase is OutgoingPhase.RESERVING:
                # The Reserve stays in the outbox: asking again keeps its place alive.
                self._actions.append(Parked(transfer.key))
            case Grant() if phase is OutgoingPhase.RESERVING:
                self._accept(transfer, message, now)
            case ReserveDenied() if phase is OutgoingPhase.RESERVING:
                transfer.wants_drained = False
                self._fail(transfer, message.code, message.message, now)
            case CommitAck() if phase is OutgoingPhase.COMMITTING and message.error is None:
                self._actions.append(Committed(transfer.key, len(transfer.target_pages)))
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
        transfer.cached_pages = tuple(grant.cached_page_indices.array.tolist())
        transfer.target_pages = tuple(grant.page_indices.array.tolist())
        transfer.phase = OutgoingPhase.WRITING
        transfer.next_beat = now + BEAT_S
        self._actions.append(Granted(transfer.key, grant.num_cached_tokens))
        self._advance(transfer, now)

    # --- steps of a transfer ---------------------------------------------------------------------

    def _advance(self, transfer: Departure, now: float) -> None:
        """Write what can be written; commit when all of it is there."""
        if transfer.phase is not OutgoingPhase.WRITING:
            return
        first = transfer.num_asked
        ready = transfer.source_pages[len(transfer.cached_pages) + first :]
        num_chunks = len(transfer.chunks) + len(transfer.writing)
        # The last place in the Commit's list is kept for all that remains at the end.
        if ready and (num_chunks < MAX_CHUNKS - 1 or transfer.first_token is not None):
            transfer.num_asked += len(ready)
            transfer.writing[first] = len(ready)
            self._actions.append(requests.write(transfer, first, ready))
            if first == 0:
                self._beat(transfer, now)
        if transfer.is_written:
            self._commit(transfer, now)

    def _commit(self, transfer: Departure, now: float) -> None:
        transfer.phase = OutgoingPhase.COMMITTING
        commit = requests.commit(transfer)
        self._outbox.send(transfer.key, transfer.owner.node_id, commit, now)
        self._actions.append(SourceReleased(transfer.key))

    def _beat(self, transfer: Departure, now: float) -> None:
        transfer.next_beat = now + BEAT_S
        self._actions.append(SendToOwner(transfer.owner, requests.progress(transfer)))

    def _fail(self, transfer: Departure, code: ErrorCode, message: str, now: float) -> None:
        self._actions.append(TransferFailed(transfer.key, code, message[:2000]))
        self._stop(transfer, now)

    def _fail_unanswered(self, transfer: Departure, now: float) -> None:
        owner = transfer.owner
        reason = (
            f"{owner.node_id} at {owner.control_address} does not answer: check --advertised-host "
            "and the firewall"
        )
        transfer.owner_lives = False
        self._fail(transfer, "node_failed", reason, now)

    def _stop(self, transfer: Departure, now: float) -> None:
        """Write nothing more; the end comes when the last copy returned."""
        if transfer.phase is OutgoingPhase.STOPPING:
            return
        self._outbox.acknowledge(transfer.key)
        if transfer.is_busy:
            transfer.phase = OutgoingPhase.STOPPING
            self._actions.append(StopWriting(transfer.key))
        else:
            self._end(transfer, now)

    def _end(self, transfer: Departure, now: float) -> None:
        if transfer.phase is not OutgoingPhase.COMMITTING:
            self._actions.append(SourceReleased(transfer.key))
        key = transfer.key
        del self._live[key]
        self._remember_ended(key)
        if transfer.wants_drained and transfer.owner_lives:
            self._outbox.send(key, transfer.owner.node_id, requests.drained(key), now)
        elif transfer.wants_drained:
            self._last_words.owe(key, transfer.owner, now)

    def _lose(self, owner_id: str, reason: str, now: float, *, may_return: bool = True) -> None:
        (self._last_words.lost if may_return else self._last_words.forget)(owner_id)
        for key in self._outbox.drop_destination(owner_id):
            if may_return and key not in self._live:  # so it was a Drained
                self._last_words.owe(key, self._owners[owner_id], now)
        for transfer in list(self._live.values()):
            if transfer.owner.node_id == owner_id and transfer.owner_lives:
                transfer.owner_lives, transfer.wants_drained = False, may_return
                if transfer.phase is not OutgoingPhase.STOPPING:
                    self._fail(transfer, "node_failed", f"lost {owner_id}: {reason}", now)

    def _remember_ended(self, key: TransferKey) -> None:
        self._ended[key] = None
        self._ended.move_to_end(key)
        while len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)

    def _take(self, now: float) -> list[OutgoingAction]:
        due = [(self._owners[owner_id], m) for owner_id, m in self._outbox.due(now)]
        self._actions += [SendToOwner(o, m) for o, m in due + self._last_words.due(now)]
        actions, self._actions = self._actions, []
        return actions
