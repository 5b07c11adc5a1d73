"""The prefix index: longest match, first holder wins, and a bounded log of what came and went."""

from random import Random
from types import SimpleNamespace

from node.prefix_index import PrefixIndex
from node.state import MAX_HASHERS
from tests.node.node_world import stream


def hashed(n: int) -> bytes:
    return n.to_bytes(8, "big") + bytes(8)


def test_the_longest_known_prefix_matches_and_a_gap_ends_it() -> None:
    index = PrefixIndex()
    for n in (1, 2, 4):
        index.insert(hashed(n), n)
    assert index.match([hashed(n) for n in (1, 2, 3, 4)]) == [1, 2]
    assert index.match([hashed(3)]) == []
    assert index.indexed([1, 9, 4]) == frozenset({1, 4})


def test_the_first_page_of_a_hash_stays_its_holder() -> None:
    index = PrefixIndex()
    index.insert(hashed(1), 5)
    index.insert(hashed(1), 6)
    assert index.match([hashed(1)]) == [5]
    index.forget([6])
    assert index.match([hashed(1)]) == [5]


def test_changes_are_told_once() -> None:
    index = PrefixIndex()
    index.insert(hashed(1), 1)
    index.insert(hashed(2), 2)
    assert index.take_changes() == ([hashed(1)[:8], hashed(2)[:8]], [])
    assert index.take_changes() == ([], [])
    index.forget([1])
    assert index.take_changes() == ([], [hashed(1)[:8]])


def test_what_came_and_went_between_two_looks_is_not_told() -> None:
    index = PrefixIndex()
    index.insert(hashed(1), 1)
    index.take_changes()
    index.insert(hashed(2), 2)
    index.forget([1, 2])
    index.insert(hashed(1), 3)
    assert index.take_changes() == ([], [])


def test_deltas_add_up_to_the_snapshot_and_stay_bounded() -> None:
    dice = Random(5)
    index = PrefixIndex()
    held: dict[int, bytes] = {}  # page -> hash
    known: set[bytes] = set()
    for _ in range(3000):
        page = dice.randrange(32)
        if page in held:
            index.forget([page])
            del held[page]
        else:
            page_hash = hashed(dice.randrange(64))
            if page_hash not in held.values():
                index.insert(page_hash, page)
                held[page] = page_hash
        if dice.random() < 0.02:
            added, removed = index.take_changes()
            assert len(added) <= 32
            assert len(removed) <= 32
            known = (known | set(added)) - set(removed)
            assert known == set(index.routing_prefixes()) == {h[:8] for h in held.values()}


def test_hashers_of_tenants_are_bounded_and_made_again(pair: SimpleNamespace) -> None:
    world = pair.World()
    first = world.submit(1, 60, 2, tenant="t", local=True)
    world.run()
    num_pages = len(world.d.state.index)
    hashers = world.d.state._hashers
    for n in range(MAX_HASHERS + 1):
        hashers.setdefault(f"x{n}", hashers["t"])
    again = world.submit(2, 60, 2, tenant="u", same_prompt_as=1, local=True)
    world.submit(3, 60, 2, tenant="v", same_prompt_as=1, local=True)
    world.run()
    assert {"t", "u", "v"} & set(hashers) == {"u", "v"}
    world.submit(4, 60, 2, tenant="t", same_prompt_as=1, local=True)
    world.run()
    assert stream(world, again) == stream(world, first)
    assert len(world.d.state.index) == 3 * num_pages  # the tenants' own; "t" found its again
