"""Other systems' bugs as tests, numbered as in the list of the hand-off reference."""

from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from kv_transfer.actions import GrantClosed, PagesVerified
from node.core import FromBulk, FromPeer, NodeLost
from node.ledger import PageState
from tandem.messages.handoff import ChunkSum, Commit, Drained, Progress

SHAPES = [(20, 12), (48, 30), (100, 5), (33, 50), (64, 1), (7, 40)]


def seconds(world: Any, duration_s: float) -> None:
    for _ in range(int(duration_s / 0.05)):
        world.turn()


@pytest.mark.parametrize("moment", range(0, 60, 3))
def test_regression_01_a_client_that_leaves_at_any_moment_leaves_nothing(
    pair: SimpleNamespace, moment: int
) -> None:
    world = pair.World(copy_chance=0.3, loss=0.1, seed=moment, decode_pages=20)
    resident = world.submit(1, 60, 60)  # so that others wait for pages, and in the batch
    victims = [world.submit(n, 60 + n, 40) for n in range(2, 6)]
    for _ in range(moment):
        world.turn()
    for victim in victims:
        world.cancel(victim)
    world.run()
    assert pair.stream(world, resident) == list(pair.expected(1, 60, 60))
    world.assert_no_leak()
    for node in (world.p, world.d):
        assert node.core.load(0).num_requests == 0
        assert (node.prefill.prompts._jobs, node.prefill.prompts._unproven) == ({}, {})
        assert (node.decode._entries, node.decode._arrived) == ({}, {})
    assert world.d.decode._transfers.live() == world.p.prefill.prompts._transfers.live() == {}


def test_regression_02_pages_of_an_aborted_write_are_not_reused_under_it(
    pair: SimpleNamespace,
) -> None:
    world = pair.World(copy_chance=0.0, decode_pages=10)
    first = world.submit(1, 100, 30)
    world.run_until(lambda: world.copies)
    world.cancel(first)
    second = world.submit(2, 100, 30)
    world.obeys_stops = False  # the copy goes on as if it had not heard
    for _ in range(60):
        world.turn()
        granted = world.d.ledger.counts().granted
        assert not granted or not world.stopped, "the copy of the first may still write"
    assert world.d.ledger.counts().draining == 7
    world.copy_chance, world.obeys_stops = 1.0, True
    world.run()
    assert pair.stream(world, second) == list(pair.expected(2, 100, 30))
    world.assert_no_leak()


def test_regression_04_a_decode_node_that_dies_frees_the_prefill_nodes_pages(
    pair: SimpleNamespace,
) -> None:
    world = pair.World(copy_chance=0.2)
    requests = [world.submit(n, 90, 20) for n in range(1, 5)]
    world.run_until(lambda: world.copies)
    world.frozen.add("d")
    world.tell("p", NodeLost(world.d.ref, "killed"))
    seconds(world, 25.0)
    assert {world.endings[r] for r in requests} == {"failed"}
    counts = world.p.ledger.counts()
    assert counts.free + counts.cached == 64
    assert world.p.core.load(0).num_requests == 0


@pytest.mark.parametrize("frozen_s", [3.0, 9.0, 30.0])
def test_regression_05_a_decode_node_that_stops_and_resumes_is_no_deadlock(
    pair: SimpleNamespace, frozen_s: float
) -> None:
    """With nothing to compute anywhere, time alone must bring everything to its end."""
    world = pair.World(prefill_pages=14)
    requests = {n: world.submit(n, 60, 20) for n in range(1, 8)}
    world.frozen.add("d")
    seconds(world, frozen_s)
    world.thaw("d")
    for n, request_id in requests.items():
        if world.endings.get(request_id) == "failed":
            world.cancel(request_id)
        assert frozen_s >= 10.0 or request_id not in world.endings, n
    world.run()
    for n, request_id in requests.items():
        if world.endings[request_id] == "length":
            assert pair.stream(world, request_id) == list(pair.expected(n, 60, 20))
    late = world.submit(20, 60, 20)
    world.run()
    assert pair.stream(world, late) == list(pair.expected(20, 60, 20))
    world.assert_no_leak()


@pytest.mark.parametrize("seed", range(6))
def test_regression_06_nodes_that_admit_opposite_subsets_make_progress(
    pair: SimpleNamespace, seed: int
) -> None:
    """Both pools hold two requests at most; the decode node also computes prompts of its own."""
    world = pair.World(prefill_pages=10, decode_pages=12, seed=seed, copy_chance=0.4, loss=0.1)
    order = list(range(1, 13))
    world.rng.shuffle(order)
    requests = {n: world.submit(n, 50, 30, local=n % 3 == 0) for n in order}
    world.run()
    for n, request_id in requests.items():
        assert pair.stream(world, request_id) == list(pair.expected(n, 50, 30))
    world.assert_no_leak()


@pytest.mark.parametrize("fate", ["lost", "doubled", "late"])
def test_regression_07_the_word_that_a_transfer_is_done_may_fail_in_every_way(
    pair: SimpleNamespace, fate: str
) -> None:
    world = pair.World()
    commits: list[Commit] = []

    def meddle(message: msgspec.Struct) -> msgspec.Struct:
        if isinstance(message, Commit):
            commits.append(message)
            if fate == "lost" and len(commits) < 4:
                return Progress(
                    request_id=message.request_id,
                    attempt=1,
                    grant_id=message.grant_id,
                    num_pages_written=1,
                )
        return message

    world.tamper = meddle
    request_id = world.submit(1, 60, 20)
    writer = world.p.identity
    if fate == "doubled":
        world.run_until(lambda: commits)
        for _ in range(5):
            world.tell("d", FromPeer(writer, commits[0]))
    world.run()
    assert pair.stream(world, request_id) == list(pair.expected(1, 60, 20))
    if fate == "late":
        seconds(world, 25.0)  # longer than a lease
        num_ignored = world.d.decode._transfers.num_ignored
        world.tell("d", FromPeer(writer, commits[0]))
        assert world.d.decode._transfers.num_ignored == num_ignored + 1
    world.run()
    world.assert_no_leak()


def test_regression_07_messages_about_unknown_transfers_are_counted(pair: SimpleNamespace) -> None:
    world = pair.World()
    ids = {"request_id": b"?" * 16, "attempt": 1}
    transfers = world.d.decode._transfers
    for message in (
        Progress(**ids, grant_id=5, num_pages_written=1),
        Drained(**ids),
    ):
        world.tell("d", FromPeer(world.p.identity, message))
    for event in (PagesVerified((b"?" * 16, 1), 5, None), GrantClosed(5, True)):
        world.tell("d", FromBulk(event, False))
    assert transfers.num_ignored == 3
    assert world.p.prefill.prompts._transfers.num_ignored == 0
    world.run()
    world.assert_no_leak()


@pytest.mark.parametrize("forgery", ["grant", "positions", "overlap", "size"])
def test_regression_08_forged_references_to_pages_are_refused_by_their_owner(
    pair: SimpleNamespace, forgery: str
) -> None:
    world = pair.World()
    honest = world.submit(1, 60, 20)
    world.run()

    def forge(message: msgspec.Struct) -> msgspec.Struct:
        if not isinstance(message, Commit):
            return message
        (chunk, *_) = message.chunks
        far = ChunkSum(first=999, num_pages=1, checksum=chunk.checksum)
        changes: dict[str, dict[str, Any]] = {
            "grant": {"grant_id": message.grant_id - 1},
            "positions": {"chunks": (far,)},
            "overlap": {"chunks": (*message.chunks, chunk)},
            "size": {"num_tokens": 1000},
        }
        return msgspec.structs.replace(message, **changes[forgery])

    world.tamper = forge
    forged = world.submit(2, 60, 20)
    seconds(world, 25.0)
    assert world.endings[forged] == "failed"
    assert len(world.tokens[forged]) == 1  # the prefill node's own first token, nothing more
    world.cancel(forged)
    world.run()
    assert pair.stream(world, honest) == list(pair.expected(1, 60, 20))
    world.assert_no_leak()


@pytest.mark.parametrize(("num_prompt", "max_tokens"), [(4096, 1), (9000, 1), (4000, 200)])
def test_regression_09_a_prompt_beyond_the_context_is_refused_by_both_nodes(
    pair: SimpleNamespace, num_prompt: int, max_tokens: int
) -> None:
    """Whatever a gateway should have caught: neither leg waits for the other."""
    world = pair.World(prefill_pages=600, decode_pages=600)
    world.submit(1, num_prompt, max_tokens)
    world.run()
    assert sorted(r.command for r in world.refusals) == ["decode", "prefill"]
    assert all("exceed the context, 4096" in r.message for r in world.refusals)
    assert world.num_copied == 0 and world.tokens == {}
    world.assert_no_leak()
    fitting = world.submit(2, 4000, 96)
    world.run()
    assert pair.stream(world, fitting) == list(pair.expected(2, 4000, 96))


def test_regression_10_an_attempt_replaced_right_after_its_kv_came_and_again(
    pair: SimpleNamespace,
) -> None:
    world = pair.World(copy_chance=0.5)
    for attempt in (1, 2, 3):
        request_id = world.submit(1, 70, 40, attempt=attempt)
        key = (request_id, attempt)
        world.run_until(lambda key=key: key in [v.key for v in world.d.decode.running()])
    world.run()
    assert pair.stream(world, request_id) == list(pair.expected(1, 70, 40))
    # The second and third found their full pages cached: the partial last page went thrice.
    assert world.num_copied == 5 + 1 + 1
    assert world.d.state.emitter.num_unacknowledged == 0
    world.assert_no_leak()


def test_regression_12_the_last_answers_of_a_thousand_are_the_first(pair: SimpleNamespace) -> None:
    world = pair.World(prefill_pages=24, decode_pages=24)
    for n in range(1, 1001):
        num_prompt, max_tokens = SHAPES[n % len(SHAPES)]
        prompt = pair.prompt(n % 50, num_prompt)
        request_id = world.submit(n, 0, min(max_tokens, 4), prompt_ids=prompt)
        if n % 7 == 0:
            world.submit(10_000 + n, 40, 20)
            world.turn()
            world.cancel((10_000 + n).to_bytes(16, "big"))
        if n <= 100 or n > 900:
            world.run()
            tokens = list(pair.tokens_after(prompt, min(max_tokens, 4)))
            assert pair.stream(world, request_id) == tokens, n
        elif n % 10 == 0:
            world.run()
    assert world.p.ledger.num_evicted > 100
    assert world.d.ledger.num_evicted > 100
    world.assert_no_leak()


def test_regression_13_a_transfer_into_a_fragmented_pool_delays_no_step(
    pair: SimpleNamespace,
) -> None:
    world = pair.World(copy_chance=0.1, decode_pages=64)
    pages = world.d.ledger.take(64, PageState.ACTIVE)
    world.d.ledger.release(pages[::2])  # every other page is free
    running = world.submit(1, 30, 200)
    world.copy_chance = 1.0
    world.run_until(lambda: world.d.core.load(0).num_decode_running)
    world.copy_chance = 0.1
    other = world.submit(2, 150, 10)
    num_turns, num_steps = 0, world.d.core.num_steps
    while other not in world.endings:
        world.turn()
        num_turns += 1
    assert world.d.core.num_steps - num_steps == num_turns  # a token in every turn
    world.d.ledger.release(pages[1::2])
    world.copy_chance = 1.0
    world.run()
    for n, request_id, shape in ((1, running, (30, 200)), (2, other, (150, 10))):
        assert pair.stream(world, request_id) == list(pair.expected(n, *shape))
    assert np.all(np.diff(pages) == 1)


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_regression_16_a_wait_for_pages_ends_and_holds_up_nobody_else(
    pair: SimpleNamespace, is_cancelled: bool
) -> None:
    world = pair.World(decode_pages=20)
    resident = world.submit(1, 60, 180)
    world.run_until(lambda: world.d.core.load(0).num_decode_running)
    patient = world.submit(2, 200, 60, deadline_s=None if is_cancelled else 2.0)
    local = world.submit(3, 20, 5, local=True)
    world.run_until(lambda: local in world.endings)  # others go on meanwhile
    small = world.submit(4, 30, 10)
    if is_cancelled:
        seconds(world, 1.0)
        assert small not in world.endings  # strictly by age: it waits behind the large one
        world.cancel(patient)
    world.run_until(lambda: small in world.endings)
    assert resident not in world.endings
    assert is_cancelled or world.endings[patient] == "failed"
    world.cancel(patient)
    world.run()
    assert pair.stream(world, resident) == list(pair.expected(1, 60, 180))
    assert pair.stream(world, small) == list(pair.expected(4, 30, 10))
    world.assert_no_leak()
