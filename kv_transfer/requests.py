"""What a writer says to owners, as messages, and to its bulk thread."""

from kv_transfer.actions import TransferKey, WritePages
from kv_transfer.departures import Departure
from tandem.messages.handoff import Commit, Drained, Progress


def progress(transfer: Departure) -> Progress:
    """The writer is at it."""
    return Progress(
        request_id=transfer.key[0],
        attempt=transfer.key[1],
        grant_id=transfer.grant_id,
        num_pages_written=transfer.num_asked,
    )


def write(transfer: Departure, first: int, source_pages: tuple[int, ...]) -> WritePages:
    """Copy these, which are from `first` on."""
    end = first + len(source_pages)
    targets, later = transfer.target_pages[first:end], transfer.target_pages[end:]
    return WritePages(
        transfer.key, transfer.owner, transfer.grant_id, first, source_pages, targets, later
    )


def commit(transfer: Departure) -> Commit:
    """All is written."""
    first_token = transfer.first_token
    assert first_token is not None
    return Commit(
        request_id=transfer.key[0],
        attempt=transfer.key[1],
        grant_id=transfer.grant_id,
        num_tokens=transfer.num_tokens,
        chunks=tuple(transfer.chunks[first] for first in sorted(transfer.chunks)),
        first_token_id=first_token.token_id,
        first_logprobs=first_token.logprobs,
        report=first_token.report,
    )


def drained(key: TransferKey) -> Drained:
    """Nothing more, ever."""
    return Drained(request_id=key[0], attempt=key[1])
