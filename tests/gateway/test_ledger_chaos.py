"""The ledger under random loss, repetition, reordering, deaths, lapsed leases, drains and moves."""

import random

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tandem.messages.placement import NodeDown, Place, Placed
from tandem.messages.serving import Adopt, Adopted

NUM_TOKENS = {1: 7, 2: 10, 3: 13, 4: 30}
NODES = ["p0", "d0", "d1"]


class Chaos:
    """Random order, loss, repetition and death. Afterwards everything works again."""

    def __init__(self, world, rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self.zombies: list = []
        self.past: list[tuple] = []
        self.answers: dict[tuple[bytes, int], Placed] = {}

    def step(self) -> None:
        self.rng.choice(
            [
                self._coordinate,
                self._deliver,
                self._emit,
                self._emit,
                self._repeat,
                self._tick,
                self._adopt,
                self._late_answer,
            ]
        )()

    def kill(self) -> None:
        """The node goes on as a zombie, under garbage, and a new incarnation takes its name."""
        node_id = self.rng.choice(NODES)
        zombie = self.world.lose(node_id)
        zombie.is_zombie = True
        self.zombies.append(zombie)
        self.world.add_node(node_id)

    def lapse(self) -> None:
        """The coordinator loses sight of a node, which goes on and gets another epoch later."""
        node = self.world.nodes[self.rng.choice(NODES)]
        for emission in node.emit():
            self.past.append((node, emission))
        down = NodeDown(node_id=node.ref.node_id, epoch=node.ref.epoch, reason="no heartbeat")
        self.world.hear(down)
        self.world.num_epochs += 1
        node.ref = msgspec.structs.replace(node.ref, epoch=self.world.num_epochs)

    def drain(self) -> None:
        """An operator wants one of the decode nodes to leave, or none any more."""
        self.world.welcome(*self.rng.choice([["d0"], ["d1"], []]))

    def _coordinate(self) -> None:
        """Idempotent answers, of which some are lost."""
        asked, self.world.to_coordinator = self.world.to_coordinator, []
        for message in asked:
            if not isinstance(message, Place):
                self.world.to_coordinator.append(message)
            elif self.rng.random() < 0.8:
                self._place(message)

    def _place(self, place: Place) -> None:
        key = (place.request_id, place.attempt)
        decode = self.rng.choice(["d0", "d1"])
        if place.move_from is not None and (place.move_from == decode or self.rng.random() < 0.2):
            self.world.refuse(place, "no_decode_node")
            return
        prefill = place.move_from or self.rng.choice(["p0", "p0", None])
        if key not in self.answers:
            self.answers[key] = self.world.placed(place, prefill, decode)
        if self.rng.random() < 0.7:
            self.world.hear(self.answers[key])

    def _late_answer(self) -> None:
        if self.answers:
            self.world.hear(self.rng.choice(list(self.answers.values())))

    def _deliver(self) -> None:
        self.rng.shuffle(self.world.to_nodes)
        if self.rng.random() < 0.3:
            del self.world.to_nodes[: self.rng.randrange(3)]
        self.world.deliver()

    def _emit(self) -> None:
        node = self.rng.choice([*self.world.nodes.values(), *self.zombies])
        node.step(self.rng.randrange(4))
        for emission in node.emit():
            self.past.append((node, emission))
            if self.rng.random() < 0.7:
                self.world.say(node, emission)

    def _repeat(self) -> None:
        if self.past:
            self.world.say(*self.rng.choice(self.past))

    def _tick(self) -> None:
        self.world.tick(self.rng.choice([0.1, 0.6]))

    def _adopt(self) -> None:
        """A node asks about any attempt; only the current decode node's pages are wanted."""
        node = self.rng.choice([*self.world.nodes.values(), *self.zombies])
        number, attempt = self.rng.choice(list(NUM_TOKENS)), self.rng.randrange(1, 4)
        before = len(self.world.to_nodes)
        question = Adopt(request_id=number.to_bytes(16, "big"), attempt=attempt)
        self.world.say(node, question)
        answers = [m for _, m in self.world.to_nodes[before:] if isinstance(m, Adopted)]
        assert len(answers) == 1
        if node in self.zombies:
            assert not answers[0].is_wanted


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.randoms(use_true_random=False), st.integers(0, 2), st.integers(0, 2), st.integers(0, 3))
def test_streams_are_exactly_once_whatever_happens(
    make_world, rng: random.Random, num_deaths: int, num_lapses: int, num_drains: int
) -> None:
    """Loss, repetition, reordering, zombies with garbage: each token once, in order, one end."""
    world = make_world()
    world.add_node("d1")
    chaos = Chaos(world, rng)
    for number, max_tokens in NUM_TOKENS.items():
        world.submit(number, params={"max_tokens": max_tokens})
    events = {chaos.kill: num_deaths, chaos.lapse: num_lapses, chaos.drain: num_drains}
    when = {event: {rng.randrange(60) for _ in range(num)} for event, num in events.items()}
    for step in range(60):
        chaos.step()
        for event in [event for event in when if step in when[event]]:
            event()
    for zombie in chaos.zombies:
        for message in zombie.emit():
            world.say(zombie, message)
    world.welcome()
    world.run(100)
    check_ends(world, num_deaths + num_lapses)
    check_nothing_is_left(world)


def check_ends(world, num_deaths: int) -> None:
    """Each request has one end, and every token before it once."""
    whole = [10 + (index * 7) % 23 for index in range(max(NUM_TOKENS.values()))]
    for number, max_tokens in NUM_TOKENS.items():
        done, ids = world.done(number), world.ids(number)
        assert ids == whole[: len(ids)], "a zombie was believed"
        assert done.usage.num_output_tokens == len(ids)
        if done.code == "suspected_poison":
            assert num_deaths >= 3
        else:
            assert (done.reason, len(ids)) == ("length", max_tokens)
    assert len(world.ledger) == 0
    assert len({e.request_id for e in world.ends}) == len(NUM_TOKENS)


def check_nothing_is_left(world) -> None:
    """Nobody is asked anything any more, and no node keeps a request."""
    world.tick(10)
    live = {node.ref.incarnation for node in world.nodes.values()}
    asked = {ref.incarnation for ref, _ in world.to_nodes}
    assert not asked & live, "something is still asked of a node"
    world.to_nodes.clear()
    world.tick(60)
    assert not world.to_nodes, "something is still asked of a dead node"
    assert all(not node.specs for node in world.nodes.values()), "a node still has a request"
