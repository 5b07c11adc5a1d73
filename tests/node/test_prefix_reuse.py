"""Two whole nodes: a second turn ships and computes only what is new; tenants share nothing."""

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from node.ledger import PageState
from prefill_node.reading import PRIOR_TOKEN_S, Rate, ReadCosts
from tandem.frames import Blob
from tandem.messages.handoff import Reserve

PAGE = 16


def conversation(pair: SimpleNamespace, world: Any, *, num_new: int = 20) -> list[int]:
    """A first turn of 100 + 60 tokens, and the prompt of the second."""
    first = world.submit(1, 100, 60)
    world.run()
    return [*pair.prompt(1, 100), *pair.stream(world, first), *pair.prompt(9, num_new)]


def test_a_second_turn_ships_only_new_pages_and_reads_the_answer(pair: SimpleNamespace) -> None:
    world = pair.World()
    prompt = conversation(pair, world)
    assert (world.num_copied, world.num_read) == (7, 0)
    again = world.submit(2, 0, 30, prompt_ids=prompt)
    world.run()
    assert pair.stream(world, again) == list(pair.tokens_after(prompt, 30))
    # KV of 159 tokens was kept there: nine full pages. Six of them the prefill node had itself.
    assert world.decode_reports[again].num_cached_tokens == 9 * PAGE
    assert world.num_copied == 7 + 12 - 9
    assert world.num_read == 3
    assert world.reports[-1].num_cached_tokens == 9 * PAGE
    assert world.decode_reports[again].transfer_bytes == 3 * world.d.pool.shape[1]
    world.assert_no_leak()


def test_a_third_turn_finds_what_was_read_in_the_prefill_nodes_own_cache(
    pair: SimpleNamespace,
) -> None:
    world = pair.World()
    prompt = conversation(pair, world)
    world.submit(2, 0, 1, prompt_ids=prompt)
    world.run()
    world.submit(3, 0, 30, prompt_ids=prompt)
    world.run()
    num_read = world.num_read
    world.submit(4, 0, 30, prompt_ids=prompt)
    world.run()
    assert world.num_read == num_read
    assert world.reports[-1].num_cached_tokens == (len(prompt) - 1) // PAGE * PAGE
    world.assert_no_leak()


def test_a_prompt_that_is_all_cached_is_granted_without_a_page_to_write(
    pair: SimpleNamespace,
) -> None:
    world = pair.World()
    world.submit(1, 96, 20)
    world.run()
    num_copied = world.num_copied
    again = world.submit(2, 96, 40, same_prompt_as=1)
    world.run()
    assert pair.stream(world, again) == list(pair.expected(1, 96, 40))
    assert world.num_copied == num_copied
    assert world.decode_reports[again].num_cached_tokens == 96
    assert world.reports[-1].num_cached_tokens == 80  # the last token is always computed
    world.assert_no_leak()


def test_another_tenant_finds_nothing(pair: SimpleNamespace) -> None:
    world = pair.World()
    prompt = conversation(pair, world)
    num_copied = world.num_copied
    other = world.submit(2, 0, 30, prompt_ids=prompt, tenant="someone else")
    world.run()
    assert pair.stream(world, other) == list(pair.tokens_after(prompt, 30))
    assert world.decode_reports[other].num_cached_tokens == 0
    assert world.reports[-1].num_cached_tokens == 0
    assert (world.num_copied - num_copied, world.num_read) == (12, 0)
    world.assert_no_leak()


@pytest.mark.parametrize("moment", range(0, 40, 2))
def test_cancel_at_every_moment_of_a_second_turn(pair: SimpleNamespace, moment: int) -> None:
    world = pair.World(copy_chance=0.2, loss=0.1, seed=moment)
    prompt = conversation(pair, world)
    victim = world.submit(2, 0, 30, prompt_ids=prompt)
    for _ in range(moment):
        world.turn()
    world.cancel(victim)
    world.run()
    world.assert_no_leak()
    again = world.submit(3, 0, 30, prompt_ids=prompt)
    world.run()
    assert pair.stream(world, again) == list(pair.tokens_after(prompt, 30))
    world.assert_no_leak()


def test_what_was_read_is_no_cache_before_the_owner_took_the_commit(pair: SimpleNamespace) -> None:
    world = pair.World()
    prompt = conversation(pair, world)
    num_known = len(world.p.state.index)
    world.verify_error = "checksum of page 0 differs"
    world.submit(2, 0, 30, prompt_ids=prompt)
    world.run_until(lambda: world.num_read == 3)
    for _ in range(20):
        world.turn()
        assert len(world.p.state.index) == num_known
    world.run()
    assert len(world.p.state.index) == num_known
    world.assert_no_leak()


def test_a_read_that_fails_is_computed(pair: SimpleNamespace) -> None:
    world = pair.World()
    prompt = conversation(pair, world)
    world.reads_fail = True
    again = world.submit(2, 0, 30, prompt_ids=prompt)
    world.run()
    assert world.num_read == 0
    assert pair.stream(world, again) == list(pair.tokens_after(prompt, 30))
    assert world.reports[-1].num_cached_tokens == 6 * PAGE
    assert world.decode_reports[again].num_cached_tokens == 9 * PAGE
    world.assert_no_leak()


def test_matched_pages_survive_a_full_pool_until_they_are_used(pair: SimpleNamespace) -> None:
    world = pair.World(decode_pages=20, copy_chance=0.1)
    prompt = conversation(pair, world)
    again = world.submit(2, 0, 30, prompt_ids=prompt)
    world.run_until(lambda: world.copies)
    others = [world.submit(n, 50, 100) for n in range(3, 6)]
    world.run()
    assert pair.stream(world, again) == list(pair.tokens_after(prompt, 30))
    for n, other in enumerate(others, 3):
        assert pair.stream(world, other) == list(pair.expected(n, 50, 100))
    world.assert_no_leak()


def test_a_reserve_for_another_prompts_prefix_fails_at_the_join(pair: SimpleNamespace) -> None:
    """A prefill node with a wrong key or tenant must not get another's pages into an answer."""
    world = pair.World()
    seen: list[Blob] = []

    def steal(message: msgspec.Struct) -> msgspec.Struct:
        if isinstance(message, Reserve):
            seen.append(message.page_hashes)
            return msgspec.structs.replace(message, page_hashes=Blob(seen[0].data[:48]))
        return message

    world.tamper = steal
    world.submit(1, 100, 60)
    world.run()
    world.reads_fail = True
    thief = world.submit(2, 70, 30)
    world.run()
    assert world.endings[thief] == "failed"
    assert "the prefix of another prompt" in world.reasons[thief]
    world.assert_no_leak()


def test_generated_pages_stay_cached_at_the_decode_node(pair: SimpleNamespace) -> None:
    world = pair.World()
    conversation(pair, world)
    assert world.d.ledger.counts().cached == 9
    assert world.p.ledger.counts().cached == 6
    cached = [p for p in range(64) if world.d.ledger.state(p) is PageState.CACHED]
    assert world.d.state.index.indexed(cached) == frozenset(cached)


def test_reading_is_chosen_by_measured_costs() -> None:
    costs = ReadCosts()
    assert costs.is_worth_reading(3, PAGE)
    assert not costs.is_worth_reading(0, PAGE)
    for step in range(50):  # computing is nearly free here
        costs.step_began(512, float(step))
        costs.step_ended(step + 0.001)
    assert not costs.is_worth_reading(3, PAGE)
    costs = ReadCosts()
    for _ in range(50):
        costs.pages_read(10, 10.0)
    assert not costs.is_worth_reading(30, PAGE)
    turned_down = 0
    while not costs.is_worth_reading(30, PAGE):  # one bad day is not held against it for ever
        turned_down += 1
    assert 50 < turned_down < 500


def test_a_step_is_one_sample_for_all_of_its_chunks() -> None:
    costs, rate = ReadCosts(), Rate(PRIOR_TOKEN_S, 256)
    costs.step_began(100, 1.0)
    costs.step_began(300, 1.0)
    costs.step_ended(3.0)
    costs.step_ended(3.0)
    rate.add(2.0, 400)
    assert costs._computing.unit_s == rate.unit_s
