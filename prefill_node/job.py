"""One prompt on its way through the prefill guest, and what it tells its gateway."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, auto

from kv_transfer.actions import FirstToken
from node.guest import PrefillWork
from node.resident import Resident
from node.runner import Sampled
from scheduling.views import SequenceView
from tandem.layout import KVLayout
from tandem.messages.common import ErrorCode, FinishReason, NodeRef, PrefillReport
from tandem.messages.serving import Ending


class Phase(Enum):
    """Where a prompt is on its way."""

    QUEUED = auto()  # holds nothing
    RESERVING = auto()  # has its pages, asks the owner for room
    PARKED = auto()  # the owner has no room; own pages given back
    GRANTED = auto()  # the owner has room; own pages not yet retaken
    READING = auto()  # has everything; part of its prefix is on the way from the owner
    RUNNABLE = auto()  # has everything
    SENDING = auto()  # computed; the owner has not verified all of it yet
    CLOSING = auto()  # ended; a copy may still read or write its pages


@dataclass(slots=True)
class Job:
    """One prompt. `decode` is None for a prompt of this node's own decode guest."""

    resident: Resident
    decode: NodeRef | None
    phase: Phase = Phase.QUEUED
    num_owner_tokens: int = 0  # cached at the owner, which lets us read them
    num_read_pages: int = 0  # read, or being read: not proven until the owner took the Commit
    num_shipped_pages: int = 0  # complete before the last chunk, so written meanwhile
    granted_at: float | None = None
    started_at: float | None = None
    _view: SequenceView | None = field(default=None, repr=False)

    def view(self) -> SequenceView:
        """What policies see; the last one where nothing changed, as is so for all that wait."""
        resident, last = self.resident, self._view
        if (
            last is None
            or last.num_computed != resident.num_computed
            or last.num_pages != resident.num_pages
            or last.is_begun != resident.is_begun
        ):
            self._view = last = resident.view()
        return last

    @property
    def is_uncomputed(self) -> bool:
        """Whether some of its prompt is still to be computed."""
        return self.phase not in (Phase.SENDING, Phase.CLOSING)

    @property
    def num_left(self) -> int:
        """Tokens not yet computed."""
        return self.resident.num_tokens - self.resident.num_computed

    def first_token(self, sampled: Sampled, node_id: str, now: float) -> FirstToken:
        """Token 0 and how it came."""
        arrived_at = self.resident.arrived_at
        assert self.started_at is not None
        report = PrefillReport(
            node_id=node_id,
            started_after_s=max(0.0, self.started_at - arrived_at),
            first_token_after_s=max(0.0, now - arrived_at),
            num_cached_tokens=self.resident.num_cached,
        )
        return FirstToken(sampled.token_id, sampled.wire_logprobs, report)

    def num_bytes_left(self, layout: KVLayout) -> int:
        """What is still to be written when the last chunk is computed."""
        num_there = max(self.num_shipped_pages, self.num_owner_tokens // layout.page_size)
        return (self.resident.num_pages - num_there) * layout.page_bytes

    def ended(self, reason: FinishReason, report: PrefillReport) -> Ending:
        """Its end with token 0, before any decode node had a part in it."""
        return Ending(
            request_id=self.resident.key[0],
            attempt=self.resident.key[1],
            end_index=self.resident.num_output_tokens,
            reason=reason,
            prefill=report,
        )

    def failed(self, code: ErrorCode, message: str) -> Ending:
        """Its end, and why."""
        return Ending(
            request_id=self.resident.key[0],
            attempt=self.resident.key[1],
            end_index=self.resident.num_output_tokens,
            reason="failed",
            code=code,
            message=message,
        )


def work_of(jobs: Iterable[Job]) -> PrefillWork:
    """What is left to compute, and the pages that it is computed in, or sent from."""
    todo: list[int] = []
    num_held_tokens = num_held_pages = 0
    for job in jobs:
        if job.is_uncomputed:
            todo.append(job.num_left)
        if job.resident.num_pages:
            num_held_tokens += job.resident.num_computed
            num_held_pages += job.resident.num_pages
    return PrefillWork(len(todo), sum(todo), num_held_tokens, num_held_pages)
