"""The simulator finds what it is there to find: a guard is taken away, and an invariant breaks."""

from collections.abc import Callable

import pytest

from gateway.token_stream import Taken, TokenStream
from kv_transfer import actions as kv
from simulator.bulk import BulkSide
from simulator.clock import Violation
from simulator.run import Simulation
from tandem.outbox import Outbox

# With a fault named that never strikes by itself, requests may fail as long as they say why.
SLOW_COPIES = {
    "page_copy_s": 0.4,
    "num_families": 100,
    "transfer_lease_s": 2.0,
    "pages": (64, 64, 14, 14),
    "faults": frozenset({"corrupt"}),
}
PAIR = {"roles": ((1.0, 0.0), (0.0, 1.0)), "pages": (64, 64)}


def test_without_checksums_a_damaged_page_becomes_a_wrong_token(
    calm: Callable[..., Simulation], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BulkSide, "_explain_mismatch", lambda self, request: None)
    simulation = calm(**PAIR, corruption=0.9, num_families=100, safety_s=4.0)
    with pytest.raises(Violation, match="I1"):
        simulation.run()


def test_without_the_drain_proof_a_page_is_reused_under_its_writer(
    calm: Callable[..., Simulation], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner believes that a frozen writer has stopped; thawed, it goes on writing."""

    post = BulkSide._answer

    def claim(self: BulkSide, event: kv.BulkEvent) -> None:
        is_closed = isinstance(event, kv.GrantClosed)
        post(self, kv.GrantClosed(event.grant_id, True) if is_closed else event)

    monkeypatch.setattr(BulkSide, "_answer", claim)
    with pytest.raises(Violation, match="I4"):
        freeze_writers(calm(**SLOW_COPIES))


def test_with_the_drain_proof_a_frozen_writer_does_no_harm(
    calm: Callable[..., Simulation],
) -> None:
    """The same scene, with every guard in its place."""
    simulation = calm(**SLOW_COPIES)
    freeze_writers(simulation)
    assert simulation.world.clock.labels["Revoke"], "grants were withdrawn meanwhile"


def freeze_writers(simulation: Simulation) -> None:
    """Stop the prefill nodes in the middle of a copy, for longer than their grants' leases."""
    world = simulation.world
    writers: list = []
    while len(writers) < 2:
        simulation.advance_to(world.clock.now + 0.05)
        writers = [node for node in world.nodes.values() if node.bulk.num_running]
    simulation.advance_to(world.clock.now + 0.1)
    for node in writers:
        node.process.freeze()
    simulation.advance_to(world.clock.now + 5.0)
    for node in writers:
        node.process.thaw()
    simulation.run()


def test_without_the_index_check_a_token_comes_twice(
    calm: Callable[..., Simulation], monkeypatch: pytest.MonkeyPatch
) -> None:
    def take_all(self: TokenStream, start, ids, logprobs=()) -> Taken:
        self.ids += ids
        return ids, ()

    monkeypatch.setattr(TokenStream, "offer", take_all)
    simulation = calm(**PAIR, duplication=0.2, safety_s=4.0)
    with pytest.raises(Violation, match="I1"):
        simulation.run()


def test_without_resends_a_request_never_ends(
    calm: Callable[..., Simulation], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is lost on the way is asked for again: if not, the liveness phase says so."""
    due = Outbox.due

    def once(self: Outbox, now: float) -> list:
        deliveries = due(self, now)
        self._pending.clear()
        return deliveries

    monkeypatch.setattr(Outbox, "due", once)
    simulation = calm(**PAIR, loss=0.2, safety_s=4.0, max_output=10)
    with pytest.raises(Violation, match="I14"):
        simulation.run()
