"""A running request moves: the node that decoded it prefills the next attempt from its cache."""

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from tandem.frames import TokenIds
from tandem.messages.serving import Decode, Prefill

PAGE = 16


def delivered(world: Any, request_id: bytes, num_tokens: int) -> list[int]:
    """The first tokens, once the gateway has them all."""
    tokens: dict[int, int] = world.tokens.setdefault(request_id, {})
    world.run_until(lambda: all(i in tokens for i in range(num_tokens)))
    return [tokens[i] for i in range(num_tokens)]


@pytest.mark.parametrize("loss", [0.0, 0.2])
@pytest.mark.parametrize("num_delivered", [1, 20, 33])
def test_a_move_computes_only_the_partial_last_page(
    pair: SimpleNamespace, loss: float, num_delivered: int
) -> None:
    world = pair.World(loss=loss)
    request_id = world.submit(1, 50, 90)
    (first,) = [m for m in world.unanswered.values() if isinstance(m, Prefill)]
    ids = delivered(world, request_id, num_delivered)
    spec = msgspec.structs.replace(first.spec, attempt=2, output_ids=TokenIds(ids))
    num_steps, num_reports = world.d.core.num_steps, len(world.reports)
    world.command("d", Prefill(spec=spec, decode=world.p.ref), "prefill", request_id)
    world.command("p", Decode(spec=spec, prefill=world.d.ref), "decode", request_id)
    world.run()
    assert pair.stream(world, request_id) == list(pair.expected(1, 50, 90))
    assert world.endings[request_id] == "length"
    moved = world.reports[num_reports:]
    assert {r.num_cached_tokens for r in moved if r.node_id == "d"} == {
        (50 + num_delivered - 1) // PAGE * PAGE
    }
    assert loss or world.d.core.num_steps - num_steps <= 3  # one chunk of the last page
    # The node that had prefilled it still has the prompt's full pages: they are not sent back.
    assert world.decode_reports[request_id].num_cached_tokens == 48
    assert world.decode_reports[request_id].node_id == "p"
    world.assert_no_leak()


def test_a_move_that_is_cancelled_leaves_nothing(pair: SimpleNamespace) -> None:
    for moment in range(12):
        world = pair.World(copy_chance=0.3, seed=moment)
        request_id = world.submit(1, 50, 90)
        (first,) = [m for m in world.unanswered.values() if isinstance(m, Prefill)]
        ids = delivered(world, request_id, 20)
        spec = msgspec.structs.replace(first.spec, attempt=2, output_ids=TokenIds(ids))
        world.command("d", Prefill(spec=spec, decode=world.p.ref), "prefill", request_id)
        world.command("p", Decode(spec=spec, prefill=world.d.ref), "decode", request_id)
        for _ in range(moment):
            world.turn()
        world.cancel(request_id, attempt=2)
        world.run()
        whole = list(pair.expected(1, 50, 90))
        assert all(whole[i] == token for i, token in world.tokens[request_id].items())
        world.assert_no_leak()
