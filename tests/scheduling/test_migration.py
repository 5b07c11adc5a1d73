"""Llumnix's rule: who is short of pages, where there are many, and whose move helps."""

import random

import pytest

from scheduling.migration import DecodeState, Movable, pick_pair, pick_request


def node(name: str, num_free: int, num_running: int, num_rows: int = 64) -> DecodeState:
    return DecodeState(name, num_free, num_running, num_rows)


def request(number: int, num_pages: int) -> Movable:
    return Movable(bytes([number]) * 16, 1, num_pages)


def test_the_least_free_node_is_paired_with_the_freest() -> None:
    nodes = [node("a", 10, 10), node("b", 4, 10), node("c", 300, 10), node("d", 200, 10)]
    assert pick_pair(nodes) == (nodes[1], nodes[2])


@pytest.mark.parametrize(
    "nodes",
    [
        [node("a", 100, 10), node("b", 1000, 10)],  # nobody is short
        [node("a", 4, 10), node("b", 50, 10)],  # nobody has plenty
        [node("a", 0, 1), node("b", 300, 1)],  # a request alone would only change places
        [node("a", 4, 10), node("b", 600, 8, num_rows=8)],  # no row is free
        [node("a", 4, 10)],
        [],
    ],
)
def test_nobody_moves_without_need_or_room(nodes: list[DecodeState]) -> None:
    assert pick_pair(nodes) is None


def test_the_shortest_request_moves_where_that_narrows_the_gap() -> None:
    source, target = node("a", 0, 4), node("b", 200, 4)
    requests = [request(1, 30), request(2, 12), request(3, 80)]
    assert pick_request(source, target, requests) == requests[1]
    assert pick_request(source, target, []) is None
    assert pick_request(source, target, [request(4, 195)]) is None, "the target would be short"


def test_moves_come_to_rest() -> None:
    """Whatever it begins with, a pair is never sent to and fro."""
    for seed in range(50):
        rng = random.Random(seed)
        pages = {name: [rng.randint(1, 40) for _ in range(rng.randint(0, 30))] for name in "abc"}
        total, num_moves = 700, 0
        while True:
            nodes = [node(name, total - sum(held), len(held)) for name, held in pages.items()]
            pair = pick_pair(nodes)
            source = pair[0].node_id if pair else ""
            held = [Movable(bytes([i]) * 16, 1, n) for i, n in enumerate(pages.get(source, []))]
            chosen = pick_request(*pair, held) if pair else None
            if pair is None or chosen is None:
                break
            pages[source].remove(chosen.num_pages)
            pages[pair[1].node_id].append(chosen.num_pages)
            num_moves += 1
            assert num_moves <= 90
