"""Both hand-off machines over a network that loses, repeats and reorders, with copies in any order.

The world (conftest.py) simulates the wires, both bulk threads and the memory. Here hypothesis looks
for short stories that break it; test_handoff_storms.py lives through long busy ones.
"""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from kv_transfer.actions import TransferKey
from kv_transfer.departures import OutgoingPhase
from node.ledger import PageState
from tandem.messages.handoff import Commit

MakeWorld = Callable[[bool], Any]


class HandOff(RuleBasedStateMachine):
    """Rules in any order."""

    def __init__(self, make_world: MakeWorld, is_mapped: bool) -> None:
        super().__init__()
        self.world = make_world(is_mapped)

    def some_key(self, index: int) -> TransferKey:
        keys = list(self.world.sources)
        return keys[index % len(keys)]

    @rule(
        num_tokens=st.integers(1, 20),
        growth=st.integers(0, 16),
        request=st.integers(0, 5),
        deadline_s=st.sampled_from([None, None, 3.0]),
    )
    def start(self, num_tokens: int, growth: int, request: int, deadline_s: float | None) -> None:
        request_id = bytes([request]) * 16
        attempt = 1 + sum(key[0] == request_id for key in self.world.sources)
        self.world.start((request_id, attempt), num_tokens, growth, deadline_s)

    @precondition(lambda self: self.world.sources)
    @rule(index=st.integers(0, 50), num_pages=st.integers(1, 3))
    def compute(self, index: int, num_pages: int) -> None:
        key = self.some_key(index)
        if not self.world.sources[key].finished:
            self.world.compute(key, num_pages)

    @precondition(lambda self: self.world.to_owner)
    @rule(index=st.integers(0, 50), keep=st.booleans())
    def deliver_to_owner(self, index: int, keep: bool) -> None:
        self.world.deliver_to_owner(index % len(self.world.to_owner), keep)

    @precondition(lambda self: self.world.to_writer)
    @rule(index=st.integers(0, 50), keep=st.booleans())
    def deliver_to_writer(self, index: int, keep: bool) -> None:
        self.world.deliver_to_writer(index % len(self.world.to_writer), keep)

    @rule(rounds=st.integers(1, 3))
    def deliver_all(self, rounds: int) -> None:
        for _ in range(rounds):
            for _ in range(len(self.world.to_owner)):
                self.world.deliver_to_owner(0, keep=False)
            for _ in range(len(self.world.to_writer)):
                self.world.deliver_to_writer(0, keep=False)

    @precondition(lambda self: self.world.to_owner or self.world.to_writer)
    @rule(index=st.integers(0, 50))
    def lose(self, index: int) -> None:
        wire = self.world.to_owner if index % 2 else self.world.to_writer
        if wire:
            wire.pop(index % len(wire))

    @precondition(lambda self: self.world.copies)
    @rule(index=st.integers(0, 50), fails=st.integers(0, 9), corrupts=st.integers(0, 9))
    def finish_copy(self, index: int, fails: int, corrupts: int) -> None:
        copies = self.world.copies
        self.world.finish_copy(index % len(copies), fails == 9, corrupts == 9)

    @precondition(lambda self: self.world.in_flight)
    @rule(index=st.integers(0, 50))
    def receive(self, index: int) -> None:
        self.world.receive(index % len(self.world.in_flight))

    @precondition(lambda self: self.world.owner_bulk)
    @rule()
    def owner_bulk_step(self) -> None:
        self.world.owner_bulk_step()

    @precondition(lambda self: self.world.sources)
    @rule(index=st.integers(0, 50))
    def cancel_at_writer(self, index: int) -> None:
        key = self.some_key(index)
        self.world.writer_does(self.world.outgoing.cancel(key, self.world.now))

    @rule(request=st.integers(0, 5), attempt=st.integers(1, 3))
    def cancel_at_owner(self, request: int, attempt: int) -> None:
        key = (bytes([request]) * 16, attempt)
        self.world.ended_by_guest |= {(key[0], earlier) for earlier in range(1, attempt + 1)}
        self.world.owner_does(self.world.incoming.cancel(key, self.world.now))

    @precondition(lambda self: self.world.resident)
    @rule(index=st.integers(0, 50))
    def release(self, index: int) -> None:
        resident = list(self.world.resident)
        self.world.release(resident[index % len(resident)])

    @rule(dt=st.sampled_from([0.1, 0.6, 2.5, 5.1]))
    def tick(self, dt: float) -> None:
        self.world.tick(dt)

    @rule()
    def link_flaps(self) -> None:
        self.world.writer_does(self.world.outgoing.peer_lost("d0", self.world.now))

    @invariant()
    def ledger_is_sound(self) -> None:
        self.world.ledger.check()

    @invariant()
    def no_page_is_reused_under_a_writer(self) -> None:
        for copy in self.world.copies:
            self.world.assert_targets_are_its_own(copy)

    @invariant()
    def an_open_receiver_covers_only_pages_of_its_grant(self) -> None:
        world = self.world
        for grant_id, pages in world.receiver.items():
            for page in pages:
                assert world.grant_of_page[page] == grant_id
                assert world.ledger.state(page) in (
                    PageState.GRANTED,
                    PageState.FILLING,
                    PageState.DRAINING,
                    PageState.QUARANTINED,
                )

    @invariant()
    def pages_of_residents_do_not_change(self) -> None:
        for key, arrived in self.world.resident.items():
            cells = [self.world.memory[page] for page in arrived.pages]
            assert cells == [(key, position) for position in range(len(cells))]

    @invariant()
    def each_attempt_has_at_most_one_outcome(self) -> None:
        assert all(count == 1 for count in self.world.outcomes.values())
        assert all(source.released <= 1 for source in self.world.sources.values())

    def teardown(self) -> None:
        world = self.world
        world.settle()
        world.ledger.check()
        assert world.ledger.counts().free == world.ledger.num_pages
        assert world.ledger.num_promised == 0
        assert all(source.released == 1 for source in world.sources.values())
        assert world.committed <= world.arrived


SETTINGS = settings(
    max_examples=40,
    stateful_step_count=60,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("is_mapped", [True, False])
def test_nothing_leaks_and_nothing_is_reused_under_a_writer(
    make_world: MakeWorld, is_mapped: bool
) -> None:
    """Mapped: the writer writes into the owner's pages. Else the owner's receiver does."""
    ended: list[HandOff] = []

    def make() -> HandOff:
        ended.append(HandOff(make_world, is_mapped))
        return ended[-1]

    run_state_machine_as_test(make, settings=SETTINGS)
    assert len(ended) >= SETTINGS.max_examples


@pytest.mark.parametrize("is_mapped", [True, False])
def test_a_quiet_network_hands_over_everything(make_world: MakeWorld, is_mapped: bool) -> None:
    world = make_world(is_mapped)
    for request in range(8):
        world.start((bytes([request]) * 16, 1), 11, 9, None)
    world.settle()
    assert len(world.arrived) == len(world.committed) == 8
    assert world.ledger.counts().free == world.ledger.num_pages


def test_the_world_notices_pages_given_away_under_a_copy(make_world: MakeWorld) -> None:
    """The check itself must be able to fail."""
    world = make_world(True)
    key = (b"r" * 16, 1)
    world.start(key, 4, 0, None)
    world.deliver_to_owner(0, keep=False)
    world.deliver_to_writer(0, keep=False)
    world.compute(key, 1)
    copy = world.copies[0]
    assert world.outgoing.live()[key] is OutgoingPhase.WRITING
    world.ledger.move(copy.target_pages, PageState.DRAINING)
    world.ledger.release(copy.target_pages)
    with pytest.raises(AssertionError):
        world.assert_targets_are_its_own(copy)
    assert not any(isinstance(message, Commit) for message in world.to_owner)
