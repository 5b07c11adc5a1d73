"""Trials of an owner's offers: whatever goes wrong, no pool stays open."""

from typing import Any

import msgspec
import pytest
import zmq

from kv_transfer.probe import try_offer
from tandem.messages.handoff import TransportOffer

OFFER = TransportOffer(transport="zmq", address="tcp://127.0.0.1:1")


class Pool:
    """Fails to be measured."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.is_closed = False

    def measure(self) -> float:
        raise self.error

    def close(self, reason: str) -> None:
        self.is_closed = True


@pytest.mark.parametrize(
    "error",
    [ValueError("no"), zmq.ContextTerminated(), msgspec.DecodeError("garbage")],
    ids=lambda error: type(error).__name__,
)
def test_an_offer_that_cannot_be_measured_is_a_failed_trial(error: Exception) -> None:
    """Also where this node stops meanwhile: a socket left open would keep it from that."""
    pool: Any = Pool(error)
    trial = try_offer(OFFER, lambda offer: pool)
    assert trial.pool is None and trial.problem == str(error)
    assert pool.is_closed


def test_an_unforeseen_error_closes_the_pool_and_goes_on() -> None:
    pool: Any = Pool(MemoryError())
    with pytest.raises(MemoryError):
        try_offer(OFFER, lambda offer: pool)
    assert pool.is_closed
