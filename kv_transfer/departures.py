"""Records of the writer's transfers, and what makes a Grant sound."""

from dataclasses import dataclass, field
from enum import Enum

from kv_transfer.actions import (
    FirstToken,
    PagesRead,
    PagesWritten,
    ReadFailed,
    TransferKey,
    WriteFailed,
    WriterEvent,
)
from tandem.messages.common import NodeRef
from tandem.messages.handoff import ChunkSum, Grant


class OutgoingPhase(Enum):
    """Where a live transfer is."""

    RESERVING = "reserving"
    WRITING = "writing"
    COMMITTING = "committing"
    STOPPING = "stopping"


@dataclass(slots=True)
class Departure:
    """One attempt's pages on their way out. Changed by `OutgoingTransfers` only."""

    key: TransferKey
    owner: NodeRef
    num_tokens: int
    num_pages: int
    deadline: float | None
    heard_at: float  # in time listened: when the owner last said anything about the attempt
    phase: OutgoingPhase = OutgoingPhase.RESERVING
    grant_id: int = 0
    target_pages: tuple[int, ...] = ()
    cached_pages: tuple[int, ...] = ()  # the owner's, with the first tokens: not to be sent
    is_reading: bool = False  # of those, into pages of our own
    source_pages: tuple[int, ...] = ()  # complete so far, in prompt order
    num_asked: int = 0  # positions of the grant whose writing was asked for
    writing: dict[int, int] = field(default_factory=dict)  # first position -> pages
    chunks: dict[int, ChunkSum] = field(default_factory=dict)
    first_token: FirstToken | None = None
    next_beat: float = 0.0
    owner_lives: bool = True  # it answers
    wants_drained: bool = True  # it may hold pages for the attempt until it hears Drained

    @property
    def is_busy(self) -> bool:
        """Whether a copy may be running, from its source pages or to them."""
        return self.is_reading or bool(self.writing)

    @property
    def is_written(self) -> bool:
        """All pages are there and the first token is known: time to commit."""
        done = self.num_asked == len(self.target_pages) and not self.is_busy
        return done and self.first_token is not None

    def end_copy(self, event: WriterEvent) -> bool:
        """Note that a copy ended; False where none ran that the event could be about."""
        match event:
            case PagesRead() | ReadFailed():
                was_reading, self.is_reading = self.is_reading, False
                return was_reading
            case PagesWritten(chunk=chunk):
                return self.writing.pop(chunk.first, None) is not None
            case WriteFailed(first=first):
                return self.writing.pop(first, None) is not None


def explain_grant(grant: Grant, transfer: Departure, page_size: int) -> str | None:
    """Why the grant does not fit the transfer; None where it does."""
    targets = grant.page_indices.array.tolist()
    cached = grant.cached_page_indices.array.tolist()
    pages = cached + targets
    is_sound = (
        grant.num_cached_tokens == len(cached) * page_size <= transfer.num_tokens
        and len(set(pages)) == len(pages) == transfer.num_pages
        and min(pages) >= 0
    )
    if is_sound:
        return None
    return (
        f"{transfer.owner.node_id} granted {len(targets)} pages after {grant.num_cached_tokens} "
        f"cached tokens in {len(cached)} pages for {transfer.num_tokens} tokens; pages here have "
        f"{page_size}"
    )
