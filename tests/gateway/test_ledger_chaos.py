"""The ledger under random loss, repetition, reordering and death."""

import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


class Chaos:
    """Random order, loss, repetition and death; then, in `settle`, everything works again."""

    def __init__(self, world, rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self.zombies: list = []
        self.past: list[tuple] = []

    def step(self) -> None:
        self.rng.choice(
            [self._coordinate, self._deliver, self._emit, self._emit, self._repeat, self._tick]
        )()

    def kill(self, node_id: str) -> None:
        """The node goes on as a zombie, under garbage, and a new incarnation takes its name."""
        zombie = self.world.lose(node_id)
        zombie.is_zombie = True
        self.zombies.append(zombie)
        self.world.add_node(node_id)

    def _coordinate(self) -> None:
        if self.rng.random() < 0.3:
            self.world.to_coordinator.clear()  # lost on the way
        self.world.coordinate(prefill=self.rng.choice(["p0", "p0", None]))

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


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.randoms(use_true_random=False), st.integers(0, 2))
def test_streams_are_exactly_once_whatever_happens(
    make_world, rng: random.Random, num_deaths: int
) -> None:
    """Loss, repetition, reordering, zombies with garbage: each token once, in order, one end."""
    world = make_world()
    chaos = Chaos(world, rng)
    for number in (1, 2, 3):
        world.submit(number, params={"max_tokens": 4 + 3 * number})
    deaths = set(rng.sample(range(40), num_deaths))
    for step in range(40):
        chaos.step()
        if step in deaths:
            chaos.kill(rng.choice(["p0", "d0"]))
    for zombie in chaos.zombies:
        for message in zombie.emit():
            world.say(zombie, message)
    world.run(60)
    for number in (1, 2, 3):
        ids = world.ids(number)
        assert all(0 <= token_id < 100 for token_id in ids), "a zombie was believed"
        assert len(ids) == 4 + 3 * number
        assert ids == world.ids(3)[: len(ids)]
        assert world.done(number).reason == "length"
        assert world.done(number).usage.num_output_tokens == len(ids)
    assert len(world.ledger) == 0
    assert len({e.request_id for e in world.ends}) == 3
    world.tick(10)
    dead = {zombie.ref for zombie in chaos.zombies}
    assert {ref for ref, _ in world.to_nodes} <= dead, "something is still asked of a node"
    world.to_nodes.clear()
    world.tick(60)
    assert not world.to_nodes, "something is still asked of a dead node"
    assert all(not node.specs for node in world.nodes.values()), "a node still has a request"
