"""What an owner says to writers, as messages."""

from kv_transfer.actions import TransferKey
from kv_transfer.arrivals import Arrival
from tandem.frames import TokenIds
from tandem.messages.common import ErrorCode
from tandem.messages.handoff import (
    CommitAck,
    DrainedAck,
    Grant,
    ReserveDenied,
    ReserveQueued,
    Revoke,
)


def granted(arrival: Arrival, page_size: int) -> Grant:
    """The pages, and what is cached before them."""
    return Grant(
        request_id=arrival.key[0],
        attempt=arrival.key[1],
        grant_id=arrival.grant_id,
        page_indices=TokenIds(arrival.pages),
        num_cached_tokens=len(arrival.cached_pages) * page_size,
        cached_page_indices=TokenIds(arrival.cached_pages),
    )


def queued(key: TransferKey) -> ReserveQueued:
    """Wait."""
    return ReserveQueued(request_id=key[0], attempt=key[1])


def denied(key: TransferKey, code: ErrorCode, message: str) -> ReserveDenied:
    """Never."""
    return ReserveDenied(request_id=key[0], attempt=key[1], code=code, message=message[:2000])


def commit_answered(key: TransferKey, grant_id: int, error: str | None) -> CommitAck:
    """Taken, or not and why."""
    error = None if error is None else error[:2000]
    return CommitAck(request_id=key[0], attempt=key[1], grant_id=grant_id, error=error)


def revoked(key: TransferKey) -> Revoke:
    """Stop, and say so."""
    return Revoke(request_id=key[0], attempt=key[1])


def drain_noted(key: TransferKey) -> DrainedAck:
    """Thanks."""
    return DrainedAck(request_id=key[0], attempt=key[1])
