"""What the hand-off machines are told and what they ask for: plain values, no sockets, no memory.

A transfer is keyed by (request id, attempt). The writer is the node that computes KV pages, the
owner the node whose pool receives them. Shells turn `Send` into messages, bulk requests into
copies, and bulk events back into calls.
"""

from dataclasses import dataclass, field

import msgspec

from tandem.messages.common import ErrorCode, NodeRef, PrefillReport, TokenLogprobs
from tandem.messages.handoff import ChunkSum

TransferKey = tuple[bytes, int]


@dataclass(frozen=True, slots=True)
class FirstToken:
    """Token 0 of an attempt, and what prefill did to get it."""

    token_id: int
    logprobs: TokenLogprobs | None
    report: PrefillReport


# --- asked of the shell by the writer's machine --------------------------------------------------


@dataclass(frozen=True, slots=True)
class SendToOwner:
    """Send on the link to the owner (resends are the machine's business)."""

    owner: NodeRef
    message: msgspec.Struct


@dataclass(frozen=True, slots=True)
class WritePages:
    """Bulk: copy `source_pages[i]` to the owner's `target_pages[i]`; positions start at `first`.

    Answered by `PagesWritten` or `WriteFailed`, also after a `StopWriting`, which only makes the
    answer come sooner: until it comes the copy may be running. `later_pages`, a hint, are the
    owner's that this transfer has yet to fill.
    """

    key: TransferKey
    owner: NodeRef
    grant_id: int
    first: int
    source_pages: tuple[int, ...]
    target_pages: tuple[int, ...]
    later_pages: tuple[int, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class StopWriting:
    """Bulk: begin no further page of this transfer."""

    key: TransferKey


@dataclass(frozen=True, slots=True)
class ReadPages:
    """Bulk: copy the owner's `owner_pages[i]`, held for this grant, to our `own_pages[i]`.

    Answered by `PagesRead` or `ReadFailed`, also after a `StopWriting`. What was read may be
    trusted once the owner has accepted the Commit: until then it held those pages.
    """

    key: TransferKey
    owner: NodeRef
    grant_id: int
    owner_pages: tuple[int, ...]
    own_pages: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SourceReleased:
    """For the prefill guest: nothing reads the transfer's source pages any more."""

    key: TransferKey


@dataclass(frozen=True, slots=True)
class Granted:
    """For the prefill guest: the owner has room; the prompt may run.

    The owner has the first `num_cached_tokens`; its pages of them may be read (`read`).
    """

    key: TransferKey
    num_cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ReadEnded:
    """For the prefill guest: the pages hold what was read, after `seconds`; None: nothing."""

    key: TransferKey
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Parked:
    """For the prefill guest: the owner queued the reserve; give the source pages back and wait."""

    key: TransferKey


@dataclass(frozen=True, slots=True)
class Committed:
    """For the prefill guest: the owner verified everything; the request lives there now.

    `num_pages` were sent.
    """

    key: TransferKey
    num_pages: int


@dataclass(frozen=True, slots=True)
class TransferFailed:
    """For the prefill guest: the attempt cannot be handed over."""

    key: TransferKey
    code: ErrorCode
    message: str


OutgoingAction = (
    SendToOwner
    | WritePages
    | ReadPages
    | StopWriting
    | SourceReleased
    | Granted
    | ReadEnded
    | Parked
    | Committed
    | TransferFailed
)

# --- asked of the shell by the owner's machine ---------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReplyToWriter:
    """Send to the writer, by the routing identity under which it dialled."""

    writer: bytes
    message: msgspec.Struct


@dataclass(frozen=True, slots=True)
class OpenGrant:
    """Bulk: from now on the writer may fill `pages` and read `readable_pages` under this grant."""

    grant_id: int
    writer: bytes
    pages: tuple[int, ...]
    readable_pages: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class CloseGrant:
    """Bulk: take nothing more for this grant and forget it. Answered by `GrantClosed`."""

    grant_id: int


@dataclass(frozen=True, slots=True)
class VerifyPages:
    """Bulk: take nothing more for this grant, compare checksums. Answered by `PagesVerified`.

    The writer committed, so every page is there, or never will be. `CloseGrant` follows.
    """

    key: TransferKey
    grant_id: int
    pages: tuple[int, ...]
    chunks: tuple[ChunkSum, ...]


@dataclass(frozen=True, slots=True)
class FenceWriter:
    """Bulk: end the process behind this identity, so that it can write no more.

    Answered by `WriterGone`; by nothing where its transport has no fence.
    """

    writer: bytes


@dataclass(frozen=True, slots=True)
class Notice:
    """For the operator: a line of the log."""

    text: str


@dataclass(frozen=True, slots=True)
class Arrived:
    """For the decode guest: the attempt's KV is READY in `pages`, which the guest now owns.

    The pages hold `num_tokens` tokens; `first_token` comes after them. The first `num_cached` pages
    were in this node's prefix cache under `cached_hashes` and are held by this request as well;
    the guest checks that those are the hashes of its own request. `num_promised` further pages are
    promised in the ledger for growth; taking or unpromising them is the guest's business now.
    """

    key: TransferKey
    pages: tuple[int, ...]
    num_promised: int
    num_tokens: int
    num_bytes: int
    first_token: FirstToken
    cached_hashes: tuple[bytes, ...] = ()

    @property
    def num_cached(self) -> int:
        """Leading pages that were not sent."""
        return len(self.cached_hashes)


@dataclass(frozen=True, slots=True)
class ArrivalFailed:
    """For the decode guest: this attempt's KV will not come.

    `code` is "cancelled" where the writer gave the attempt up: it tells the gateway why itself.
    """

    key: TransferKey
    code: ErrorCode
    message: str


IncomingAction = (
    ReplyToWriter
    | OpenGrant
    | CloseGrant
    | VerifyPages
    | FenceWriter
    | Notice
    | Arrived
    | ArrivalFailed
)

# --- told to the machines by the bulk thread -----------------------------------------------------


@dataclass(frozen=True, slots=True)
class PagesWritten:
    """Writer: the copy of one `WritePages` returned; `chunk` is its checksum."""

    key: TransferKey
    chunk: ChunkSum


@dataclass(frozen=True, slots=True)
class WriteFailed:
    """Writer: one `WritePages` will not complete; no copy of it is running any more."""

    key: TransferKey
    first: int
    reason: str


@dataclass(frozen=True, slots=True)
class PagesVerified:
    """Owner: the outcome of `VerifyPages`; `error` is None where every checksum matched."""

    key: TransferKey
    grant_id: int
    error: str | None


@dataclass(frozen=True, slots=True)
class GrantClosed:
    """Owner: nothing will be received for this grant any more (its own receiver's drain proof).

    `remote_writer_stopped` is False for mapped transports, where only the writer can say so.
    """

    grant_id: int
    remote_writer_stopped: bool


@dataclass(frozen=True, slots=True)
class PagesRead:
    """Writer: the `ReadPages` of this transfer returned, after `seconds`."""

    key: TransferKey
    seconds: float


@dataclass(frozen=True, slots=True)
class ReadFailed:
    """Writer: the `ReadPages` will not complete; nothing of it is running any more."""

    key: TransferKey
    reason: str


@dataclass(frozen=True, slots=True)
class WriterGone:
    """Owner: proof that the process behind this identity has ended; it writes nothing any more."""

    writer: bytes


WriterEvent = PagesWritten | WriteFailed | PagesRead | ReadFailed
OwnerEvent = PagesVerified | GrantClosed | WriterGone
BulkEvent = WriterEvent | OwnerEvent
