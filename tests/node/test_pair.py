"""Two whole nodes: exact streams over lost and repeated messages, cancels at every moment."""

from types import SimpleNamespace

import pytest

LENGTHS = [(5, 9), (16, 1), (17, 40), (100, 3), (33, 20), (64, 17), (1, 2), (90, 60)]


@pytest.mark.parametrize("loss", [0.0, 0.2])
@pytest.mark.parametrize("policy", ["fifo", "static"])
def test_streams_are_exact_and_nothing_leaks(
    pair: SimpleNamespace, loss: float, policy: str
) -> None:
    world = pair.World(loss=loss, policy=policy)
    ids = [world.submit(n, *lengths) for n, lengths in enumerate(LENGTHS)]
    world.run()
    for n, (request_id, lengths) in enumerate(zip(ids, LENGTHS, strict=True)):
        assert pair.stream(world, request_id) == list(pair.expected(n, *lengths))
        assert world.endings[request_id] == "length"
    world.assert_no_leak()


def test_local_prefill_needs_no_transfer(pair: SimpleNamespace) -> None:
    world = pair.World()
    request_id = world.submit(3, 70, 25, local=True)
    world.run()
    assert pair.stream(world, request_id) == list(pair.expected(3, 70, 25))
    assert world.num_copied == 0
    world.assert_no_leak()


def test_small_pools_serve_more_than_they_hold_one_after_the_other(pair: SimpleNamespace) -> None:
    world = pair.World(prefill_pages=9, decode_pages=10)
    ids = [world.submit(n, 60 + n, 50) for n in range(6)]
    world.run()
    for n, request_id in enumerate(ids):
        assert pair.stream(world, request_id) == list(pair.expected(n, 60 + n, 50))
    world.assert_no_leak()


def test_a_request_that_no_pool_holds_is_refused_with_advice(pair: SimpleNamespace) -> None:
    world = pair.World(decode_pages=4)
    request_id = world.submit(1, 60, 50)
    for _ in range(3):
        world.turn()
    assert world.refusals
    assert world.refusals[0].code == "too_few_pages"
    assert "--num-pages" in world.refusals[0].message
    world.cancel(request_id)
    world.run()
    world.assert_no_leak()


@pytest.mark.parametrize("loss", [0.0, 0.2])
def test_cancel_at_every_moment_frees_both_sides(pair: SimpleNamespace, loss: float) -> None:
    for moment in range(0, 24):
        world = pair.World(loss=loss)
        victim = world.submit(1, 150, 30)
        other = world.submit(2, 40, 30)
        for _ in range(moment):
            world.turn()
        world.cancel(victim)
        world.run()
        assert pair.stream(world, other) == list(pair.expected(2, 40, 30))
        got = world.tokens.get(victim, {})
        whole = list(pair.expected(1, 150, 30))
        assert all(token == whole[index] for index, token in got.items())
        world.assert_no_leak()


def test_a_shared_prefix_is_computed_once(pair: SimpleNamespace) -> None:
    world = pair.World()
    world.submit(1, 100, 4)
    world.run()
    again = world.submit(2, 100, 9, same_prompt_as=1)
    world.run()
    assert pair.stream(world, again) == list(pair.expected(1, 100, 9))
    assert {r.num_cached_tokens for r in world.reports[:2]} == {0}
    assert {r.num_cached_tokens for r in world.reports[2:]} == {96}
    world.assert_no_leak()
