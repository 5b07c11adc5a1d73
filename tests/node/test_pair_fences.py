"""Two whole nodes when a prefill node freezes or dies: no page without proof, none kept."""

from types import SimpleNamespace
from typing import Any

import pytest


def seconds(world: Any, duration_s: float) -> None:
    for _ in range(int(duration_s / 0.1)):
        world.turn(0.1)


@pytest.mark.parametrize("has_prefix", [False, True])
@pytest.mark.parametrize("moment", range(0, 30, 2))
def test_a_prefill_node_dies_at_every_moment(
    pair: SimpleNamespace, moment: int, has_prefix: bool
) -> None:
    world = pair.World(copy_chance=0.2, seed=moment)
    if has_prefix:  # matched and read by what follows
        for n in range(1, 4):
            world.submit(10 + n, 60, 5, same_prompt_as=n, local=True)
        world.run()
    requests = [world.submit(n, 100, 30) for n in range(1, 4)]
    for _ in range(moment):
        world.turn()
    world.kill("p")
    seconds(world, 30.0)
    for n, request_id in enumerate(requests, 1):
        got = world.tokens.get(request_id, {})
        whole = list(pair.expected(n, 100, 30))
        assert all(whole[index] == token for index, token in got.items())
        if world.endings.get(request_id) == "length":
            assert len(got) == 30  # committed before: the death is irrelevant
    counts = world.d.ledger.counts()
    assert counts.draining + counts.quarantined + counts.granted + counts.filling == 0
    assert counts.ready + counts.active == world.d.core.load(0).num_decode_running == 0


def frozen(pair: SimpleNamespace, *, decode_pages: int) -> tuple[Any, bytes]:
    """A prefill node that stopped amid its copies, long enough ago for its lease to end."""
    world = pair.World(copy_chance=0.0, decode_pages=decode_pages)
    request_id = world.submit(1, 100, 30)
    world.run_until(lambda: world.copies)
    world.frozen.add("p")
    seconds(world, 22.0)
    assert world.endings[request_id] == "failed"
    assert world.d.ledger.counts().draining == 7
    return world, request_id


def test_a_frozen_node_that_nobody_needs_pages_from_may_come_back(pair: SimpleNamespace) -> None:
    world, _ = frozen(pair, decode_pages=64)
    seconds(world, 120.0)
    assert world.fences == []
    assert world.d.ledger.counts().draining == 7
    world.copy_chance = 1.0
    world.thaw("p")
    world.run()
    world.assert_no_leak()


def test_a_frozen_node_is_ended_when_its_pages_are_wanted(pair: SimpleNamespace) -> None:
    world, _ = frozen(pair, decode_pages=16)
    world.frozen.add("q")  # another prefill node, of which only the Reserve matters
    reserve = world.reserve_of(b"node/q/1", n=7, num_tokens=180)
    for _ in range(14):
        world.tell("d", reserve)
        seconds(world, 1.0)
    assert set(world.fences) == {b"node/p/1"}
    assert any("its process is ended" in text for text in world.notices)
    assert world.d.ledger.counts().draining == 7  # asking is no proof
    assert world.d.ledger.counts().granted == 0
    world.kill("p")  # and its copies
    seconds(world, 0.2)
    assert world.d.ledger.counts().draining == 0
    assert world.d.ledger.counts().granted == 12
