"""Records of the writer's transfers, and what makes a Grant sound."""

from dataclasses import dataclass, field
from enum import Enum

from kv_transfer.actions import FirstToken, TransferKey
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
    num_skipped: int = 0  # leading source pages that the owner has in its cache
    source_pages: tuple[int, ...] = ()  # complete so far, in prompt order
    num_asked: int = 0  # positions of the grant whose writing was asked for
    writing: dict[int, int] = field(default_factory=dict)  # first position -> pages
    chunks: dict[int, ChunkSum] = field(default_factory=dict)
    first_token: FirstToken | None = None
    next_beat: float = 0.0
    owner_lives: bool = True  # it answers: its end of the attempt wants a Drained

    @property
    def is_written(self) -> bool:
        """All pages are there and the first token is known: time to commit."""
        done = self.num_asked == len(self.target_pages) and not self.writing
        return done and self.first_token is not None


def explain_grant(grant: Grant, transfer: Departure, page_size: int) -> str | None:
    """Why the grant does not fit the transfer; None where it does."""
    targets = grant.page_indices.array.tolist()
    wanted = transfer.num_pages - grant.num_cached_tokens // page_size
    is_sound = (
        grant.num_cached_tokens % page_size == 0
        and len(set(targets)) == len(targets) == wanted
        and min(targets, default=0) >= 0
    )
    if is_sound:
        return None
    return (
        f"{transfer.owner.node_id} granted {len(targets)} pages after {grant.num_cached_tokens} "
        f"cached tokens for {transfer.num_tokens} tokens; pages here have {page_size}"
    )
