"""Long busy stories of both hand-off machines: many seeds, every fault, audited at every event.

Unlike the property test these reach deep states often, and check that they did.
"""

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

NUM_SEEDS = 40
NUM_EVENTS = 400
WEIGHTS = {
    "start": 2.0,
    "compute": 6.0,
    "to_owner": 8.0,
    "to_writer": 8.0,
    "lose": 0.6,
    "copy": 6.0,
    "receive": 3.0,
    "bulk": 6.0,
    "cancel_at_writer": 0.3,
    "cancel_at_owner": 0.3,
    "release": 3.0,
    "tick": 4.0,
    "flap": 0.1,
}


class Storm:
    """One world and the dice."""

    def __init__(self, world: Any, seed: int) -> None:
        self.world = world
        self.dice = Random(seed)
        self.seen: Counter[str] = Counter()

    def run(self) -> None:
        names, weights = list(WEIGHTS), list(WEIGHTS.values())
        for _ in range(NUM_EVENTS):
            getattr(self, self.dice.choices(names, weights)[0])()
            self.audit()
        self.world.settle()
        self.audit()

    def audit(self) -> None:
        world = self.world
        world.ledger.check()
        for copy in world.copies:
            world.assert_targets_are_its_own(copy)
        for key, arrived in world.resident.items():
            cells = [world.memory[page] for page in arrived.pages]
            assert cells == [(key, position) for position in range(len(cells))]
        assert all(count == 1 for count in world.outcomes.values())
        for phase in world.incoming.live().values():
            self.seen[phase.value] += 1
        self.seen["quarantined"] += world.ledger.counts().quarantined > 0

    def start(self) -> None:
        if len(self.world.sources) < 40:
            request_id = bytes([self.dice.randrange(12)]) * 16
            attempt = 1 + sum(key[0] == request_id for key in self.world.sources)
            deadline_s = self.dice.choice([None, None, None, 8.0])
            num_tokens, growth = self.dice.randint(1, 24), self.dice.randint(0, 12)
            self.world.start((request_id, attempt), num_tokens, growth, deadline_s)

    def compute(self) -> None:
        unfinished = [key for key, source in self.world.sources.items() if not source.finished]
        if unfinished:
            self.world.compute(self.dice.choice(unfinished), self.dice.randint(1, 3))

    def to_owner(self) -> None:
        if self.world.to_owner:
            index = self.dice.randrange(min(4, len(self.world.to_owner)))
            self.world.deliver_to_owner(index, keep=self.dice.random() < 0.1)

    def to_writer(self) -> None:
        if self.world.to_writer:
            index = self.dice.randrange(min(4, len(self.world.to_writer)))
            self.world.deliver_to_writer(index, keep=self.dice.random() < 0.1)

    def lose(self) -> None:
        wire = self.dice.choice([self.world.to_owner, self.world.to_writer])
        if wire:
            wire.pop(self.dice.randrange(len(wire)))

    def copy(self) -> None:
        if self.world.copies:
            index = self.dice.randrange(len(self.world.copies))
            fails, corrupts = self.dice.random() < 0.03, self.dice.random() < 0.15
            self.world.finish_copy(index, fails, corrupts)

    def receive(self) -> None:
        if self.world.in_flight:
            self.world.receive(self.dice.randrange(len(self.world.in_flight)))

    def bulk(self) -> None:
        if self.world.owner_bulk:
            self.world.owner_bulk_step()

    def cancel_at_writer(self) -> None:
        if self.world.sources:
            key = self.dice.choice(list(self.world.sources))
            self.world.writer_does(self.world.outgoing.cancel(key, self.world.now))

    def cancel_at_owner(self) -> None:
        if self.world.sources:
            request_id, attempt = self.dice.choice(list(self.world.sources))
            ended = {(request_id, earlier) for earlier in range(1, attempt + 1)}
            self.world.ended_by_guest |= ended
            cancelled = self.world.incoming.cancel((request_id, attempt), self.world.now)
            self.world.owner_does(cancelled)

    def release(self) -> None:
        if self.world.resident:
            self.world.release(self.dice.choice(list(self.world.resident)))

    def tick(self) -> None:
        self.world.tick(self.dice.choice([0.05, 0.1, 0.3, 1.0]))

    def flap(self) -> None:
        if self.dice.random() < 0.5:
            self.world.writer_does(self.world.outgoing.peer_lost("d0", self.world.now))
        else:
            self.world.tick(6.0)  # longer than the lease: the writer counts as silent


@pytest.mark.parametrize("is_mapped", [True, False])
def test_storms_end_with_every_page_free(
    make_world: Callable[[bool], Any], is_mapped: bool
) -> None:
    seen: Counter[str] = Counter()
    for seed in range(NUM_SEEDS):
        storm = Storm(make_world(is_mapped), seed)
        storm.run()
        world = storm.world
        assert world.ledger.counts().free == world.ledger.num_pages, seed
        assert world.ledger.num_promised == 0, seed
        assert all(source.released == 1 for source in world.sources.values()), seed
        assert world.committed <= world.arrived, seed
        seen += storm.seen
        seen["arrived"] += len(world.arrived)
        seen["corrupted"] += len(world.suspects)
        seen["failed"] += len(world.sources) - len(world.arrived)
    for what in ("queued", "open", "verifying", "draining", "quarantined"):
        assert seen[what] > 50, seen
    assert min(seen["arrived"], seen["failed"]) > 3 * NUM_SEEDS, seen
    assert seen["corrupted"] > NUM_SEEDS / 2, seen
