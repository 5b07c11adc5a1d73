"""Writer node -> page owner and back: the hand-off of KV pages.

The wire names a grant and positions within it, never addresses. `Drained` is the writer's proof
that it will not touch the attempt's pages again.
"""

from typing import Annotated

import msgspec

from tandem.frames import Blob, TokenIds
from tandem.layout import KVLayout
from tandem.messages.common import (
    Address,
    Attempt,
    Counter,
    CurveKey,
    Duration,
    ErrorCode,
    Message,
    ModelIdentity,
    Name,
    PeerId,
    PrefillReport,
    RequestId,
    ShortText,
    TokenId,
    TokenLogprobs,
    Wire,
)

Checksum = Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)]


class TransportOffer(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A way into the owner's pool. `key` is the CURVE key of a bulk socket, where it has one."""

    transport: Name
    address: Address
    key: CurveKey | None = None


class WriterHello(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """A writer opens the link; `host_id` names the boot, `transports` what it can speak.

    First without `chosen`; once it has measured the owner's offers, with the one that it will use,
    until the owner confirms it. `bulk_key` is the CURVE key of its bulk sockets. Repeated while the
    link lives, it tells of the step loop as `NodeLoad` does: whether a silent writer is only busy.
    """

    node_id: Name
    incarnation: Counter
    epoch: Counter
    layout: KVLayout
    model: ModelIdentity
    host_id: Name
    transports: Annotated[tuple[Name, ...], msgspec.Meta(min_length=1, max_length=8)]
    chosen: Name | None = None
    bulk_key: CurveKey | None = None
    has_work: bool = False
    step_age_s: Duration = 0.0
    predicted_step_s: Duration = 0.0


class OwnerWelcome(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """What the owner offers to this writer; with `transport` the writer's choice is confirmed."""

    node_id: Name
    incarnation: Counter
    epoch: Counter
    num_pages: Counter
    offers: Annotated[tuple[TransportOffer, ...], msgspec.Meta(min_length=1, max_length=8)]
    transport: Name | None = None


class OwnerRefused(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """The two cannot exchange pages; both values are in the reason."""

    node_id: Name
    reason: ShortText


class Reserve(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Ask for pages that hold `num_tokens` and for room to grow to `max_total_tokens`.

    `page_hashes` are the 16-byte hashes of the full pages among them: what the owner has already
    need not be sent. `gateway` commanded the attempt, under the routing identity by which nodes
    know it: the owner may ask it whether the attempt is wanted. `owner_incarnation` is the process
    that is meant: its successor at the same address knows nothing of the attempt.
    """

    request_id: RequestId
    attempt: Attempt
    owner_incarnation: Counter
    gateway: PeerId
    num_tokens: Counter
    max_total_tokens: Counter
    sequence: Counter
    deadline_s: Duration | None
    page_hashes: Blob


class Grant(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Pages to write, in prompt order, after the `num_cached_tokens` that the owner has.

    `cached_page_indices` hold those; the writer may read them while the grant lives.
    """

    request_id: RequestId
    attempt: Attempt
    grant_id: Counter
    page_indices: TokenIds
    num_cached_tokens: Counter
    cached_page_indices: TokenIds = msgspec.field(default_factory=TokenIds)


class ReserveQueued(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """No pages yet; the owner keeps the reserve and grants it when it can."""

    request_id: RequestId
    attempt: Attempt


class ReserveDenied(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """No pages, ever, for this attempt."""

    request_id: RequestId
    attempt: Attempt
    code: ErrorCode
    message: ShortText


class Progress(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Pages written so far; a hint that renews the lease, never relied on."""

    request_id: RequestId
    attempt: Attempt
    grant_id: Counter
    num_pages_written: Counter


class ChunkSum(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True, array_like=True):
    """xxh3-64 of `num_pages` pages from position `first` of the grant, and of their identity."""

    first: Counter
    num_pages: Counter
    checksum: Checksum


class Commit(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """All pages are written: their checksums and the first token."""

    request_id: RequestId
    attempt: Attempt
    grant_id: Counter
    num_tokens: Counter
    chunks: Annotated[tuple[ChunkSum, ...], msgspec.Meta(max_length=2048)]
    first_token_id: TokenId
    first_logprobs: TokenLogprobs | None
    report: PrefillReport


class CommitAck(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Verified and taken; or not, and why (then the attempt is over)."""

    request_id: RequestId
    attempt: Attempt
    grant_id: Counter
    error: ShortText | None = None


class Revoke(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """The owner wants no more writes for this attempt; resent until `Drained`."""

    request_id: RequestId
    attempt: Attempt


class Drained(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """The writer will never again write for this attempt; resent until acknowledged."""

    request_id: RequestId
    attempt: Attempt


class DrainedAck(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """The owner noted it."""

    request_id: RequestId
    attempt: Attempt


FromWriter = WriterHello | Reserve | Progress | Commit | Drained
FromOwner = (
    OwnerWelcome
    | OwnerRefused
    | Grant
    | ReserveQueued
    | ReserveDenied
    | CommitAck
    | Revoke
    | DrainedAck
)
