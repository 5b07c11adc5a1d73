"""Records of the owner's transfers, their indexes, and what makes a Reserve or Commit sound."""

import bisect
from collections import Counter, OrderedDict
from enum import Enum

from kv_transfer.actions import TransferKey
from node.page_pool import Claim
from scheduling.page_hash import DIGEST_BYTES
from tandem.layout import KVLayout
from tandem.messages.common import ErrorCode
from tandem.messages.handoff import Commit, Reserve

MAX_ENDED = 16_384  # requests whose ended attempts are remembered


class ArrivalPhase(Enum):
    """Where a transfer is at the owner."""

    QUEUED = "queued"
    OPEN = "open"
    VERIFYING = "verifying"
    DRAINING = "draining"


class Arrival:
    """One attempt's pages on their way in. Changed by `IncomingTransfers` only."""

    __slots__ = (
        "_grant_id",
        "cached_pages",
        "commit",
        "deadline",
        "heard_at",
        "is_closed",
        "is_filling",
        "is_suspect",
        "key",
        "max_total_tokens",
        "num_promised",
        "num_tokens",
        "page_hashes",
        "pages",
        "phase",
        "sequence",
        "writer",
        "writer_lives",
        "writer_stopped",
        "writer_told",
    )

    def __init__(self, key: TransferKey, writer: bytes, reserve: Reserve, now: float) -> None:
        self.key = key
        self.writer = writer
        self.num_tokens = reserve.num_tokens
        self.max_total_tokens = reserve.max_total_tokens
        self.sequence = reserve.sequence
        self.page_hashes = split_hashes(reserve.page_hashes.data)
        self.deadline = None if reserve.deadline_s is None else now + reserve.deadline_s
        self.heard_at = now
        self.phase = ArrivalPhase.QUEUED
        self._grant_id: int | None = None
        self.pages: tuple[int, ...] = ()  # for the writer to fill
        self.cached_pages: tuple[int, ...] = ()  # matched; held, and readable by the writer
        self.num_promised = 0
        self.commit: Commit | None = None
        self.is_filling = False
        self.is_suspect = False  # its bytes did not verify
        self.is_closed = False  # our own receiver takes nothing more for the grant
        self.writer_stopped = False  # proof that the writer writes no more
        self.writer_told = False  # the writer said Drained: it needs no Revoke
        self.writer_lives = True

    @property
    def grant_id(self) -> int:
        """The grant, which every arrival but a queued one has."""
        assert self._grant_id is not None
        return self._grant_id

    @property
    def num_held(self) -> int:
        """Pages that it keeps from others."""
        return len(self.cached_pages) + len(self.pages)

    @property
    def cached_hashes(self) -> tuple[bytes, ...]:
        """Under which its cached pages were found."""
        return self.page_hashes[: len(self.cached_pages)]

    def open(self, grant_id: int, claim: Claim, now: float) -> None:
        """It got pages."""
        self._grant_id = grant_id
        self.cached_pages, self.pages = claim.cached, claim.fresh
        self.num_promised = claim.num_promised
        self.heard_at = now
        self.phase = ArrivalPhase.OPEN


class ArrivalTable:
    """Live arrivals by key, by grant and by age; and the highest ended attempt per request."""

    def __init__(self) -> None:
        self._by_key: dict[TransferKey, Arrival] = {}
        self._by_grant: dict[int, Arrival] = {}
        self._waiting: list[tuple[int, TransferKey]] = []  # by placement sequence, oldest first
        self._ended: OrderedDict[bytes, int] = OrderedDict()

    def add(self, arrival: Arrival) -> None:
        """Enter a queued arrival."""
        self._by_key[arrival.key] = arrival
        bisect.insort(self._waiting, (arrival.sequence, arrival.key))

    def granted(self, arrival: Arrival) -> None:
        """It has pages now and waits no more."""
        self._waiting.remove((arrival.sequence, arrival.key))
        self._by_grant[arrival.grant_id] = arrival

    def remove(self, arrival: Arrival) -> None:
        """Forget a finished arrival."""
        del self._by_key[arrival.key]
        if arrival.phase is ArrivalPhase.QUEUED:
            self._waiting.remove((arrival.sequence, arrival.key))
        else:
            del self._by_grant[arrival.grant_id]

    def get(self, key: TransferKey) -> Arrival | None:
        """The live arrival of an attempt."""
        return self._by_key.get(key)

    def of_grant(self, grant_id: int) -> Arrival | None:
        """The live arrival that a grant belongs to."""
        return self._by_grant.get(grant_id)

    def of_request(self, request_id: bytes, *, up_to: int) -> list[Arrival]:
        """Live arrivals of the request's attempts from 1 to `up_to`."""
        if up_to < 1:
            return []
        return [a for (r, n), a in self._by_key.items() if r == request_id and n <= up_to]

    def of_writer(self, writer: bytes) -> list[Arrival]:
        """Live arrivals from one writer."""
        return [a for a in self._by_key.values() if a.writer == writer]

    def waiting(self) -> list[Arrival]:
        """Queued arrivals, the oldest first."""
        return [self._by_key[key] for _, key in self._waiting]

    def all(self) -> list[Arrival]:
        """Every live arrival."""
        return list(self._by_key.values())

    def num_draining(self) -> Counter[bytes]:
        """Pages that each writer was asked to leave and has not yet been proved to have left."""
        draining: Counter[bytes] = Counter()
        for arrival in self._by_key.values():
            if arrival.phase is ArrivalPhase.DRAINING and not arrival.writer_stopped:
                draining[arrival.writer] += arrival.num_held
        return draining

    def end(self, key: TransferKey) -> None:
        """This attempt of the request and all earlier ones get no (further) grant."""
        request_id, attempt = key
        if attempt < 1:
            return
        self._ended[request_id] = max(attempt, self._ended.get(request_id, 0))
        self._ended.move_to_end(request_id)
        if len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)

    def has_ended(self, key: TransferKey) -> bool:
        """Whether this attempt, or a later one of its request, is over."""
        return self._ended.get(key[0], 0) >= key[1]


def split_hashes(data: bytes) -> tuple[bytes, ...]:
    """The page hashes that a Reserve lists."""
    return tuple(data[at : at + DIGEST_BYTES] for at in range(0, len(data), DIGEST_BYTES))


def explain_reserve(
    reserve: Reserve, layout: KVLayout, num_pages: int
) -> tuple[ErrorCode, str] | None:
    """Why this pool can never serve the reserve; None where it can."""
    if not 1 <= reserve.num_tokens <= reserve.max_total_tokens:
        return (
            "invalid_request",
            f"a reserve for {reserve.num_tokens} tokens that may grow to "
            f"{reserve.max_total_tokens}; the first must be at least 1 and at most the second",
        )
    num_bytes = len(reserve.page_hashes)
    if (
        num_bytes % DIGEST_BYTES
        or num_bytes > reserve.num_tokens // layout.page_size * DIGEST_BYTES
    ):
        return (
            "invalid_request",
            f"{num_bytes} bytes of page hashes for {reserve.num_tokens} tokens: at most one of "
            f"{DIGEST_BYTES} bytes for each full page of {layout.page_size}",
        )
    needed = layout.num_pages_for(reserve.max_total_tokens)
    if needed > num_pages:
        return (
            "too_few_pages",
            f"{reserve.max_total_tokens} tokens need {needed} KV pages of {layout.page_size} "
            f"tokens, the decode node's pool has {num_pages}: lower max_tokens, shorten the "
            "prompt, or give the node more pages",
        )
    return None


def explain_commit(commit: Commit, arrival: Arrival) -> str | None:
    """Why the commit does not fit its grant; None where it covers each position exactly once."""
    if commit.num_tokens != arrival.num_tokens:
        return f"commit of {commit.num_tokens} tokens, {arrival.num_tokens} were reserved"
    position = 0
    for chunk in commit.chunks:
        if chunk.first != position or chunk.num_pages < 1:
            return f"commit lists pages from {chunk.first} where {position} comes next"
        position += chunk.num_pages
    if position != len(arrival.pages):
        return f"commit covers {position} pages, {len(arrival.pages)} were granted"
    return None
