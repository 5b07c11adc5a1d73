"""KV that is not the request's is refused where it meets the command; what a grant waits for."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from node.core import FromPeer
from prefill_node.guest import GRANTED_PATIENCE_S
from tandem.frames import TokenIds
from tandem.messages.common import SlaTargets, TokenLogprobs
from tandem.messages.handoff import Commit, Reserve
from tandem.messages.serving import Decode, RequestSpec
from tandem.sampling import SamplingParams
from tests.node.node_world import GATEWAY, prompt

VOCAB = 1000


def of_more_tokens(message: msgspec.Struct) -> msgspec.Struct:
    """As many pages, but KV of 64 tokens."""
    if isinstance(message, Reserve | Commit):
        return msgspec.structs.replace(message, num_tokens=64)
    return message


def with_a_first_token_that_is_none(message: msgspec.Struct) -> msgspec.Struct:
    if isinstance(message, Commit):
        return msgspec.structs.replace(message, first_token_id=VOCAB)
    return message


def with_logprobs_that_nobody_asked_for(message: msgspec.Struct) -> msgspec.Struct:
    if isinstance(message, Commit):
        return msgspec.structs.replace(message, first_logprobs=TokenLogprobs(logprob=-1.0))
    return message


def for_a_shorter_answer(message: msgspec.Struct) -> msgspec.Struct:
    if isinstance(message, Reserve):
        return msgspec.structs.replace(message, max_total_tokens=message.num_tokens)
    return message


@pytest.mark.parametrize(
    ("tamper", "reason"),
    [
        (of_more_tokens, "KV of 64 tokens came for 60"),
        (with_a_first_token_that_is_none, "first token is 1000"),
        (with_logprobs_that_nobody_asked_for, "came with logprobs"),
        (for_a_shorter_answer, "4 pages were reserved, 6 are needed"),
    ],
)
def test_what_is_not_the_requests_fails_at_the_join(
    pair: SimpleNamespace, tamper: Callable[[msgspec.Struct], msgspec.Struct], reason: str
) -> None:
    world = pair.World()
    world.tamper = tamper
    request_id = world.submit(1, 60, 30)
    world.run()
    assert world.endings[request_id] == "failed"
    assert reason in world.reasons[request_id]
    world.assert_no_leak()


def test_a_first_token_without_the_logprobs_asked_for_fails_at_the_join(
    pair: SimpleNamespace,
) -> None:
    def take_them_away(message: msgspec.Struct) -> msgspec.Struct:
        if isinstance(message, Commit):
            return msgspec.structs.replace(message, first_logprobs=None)
        return message

    world = pair.World()
    world.tamper = take_them_away
    params = SamplingParams(max_tokens=30, temperature=0.0, logprobs=1)
    request_id = world.submit(1, 60, 30, params=params)
    world.run()
    assert world.endings[request_id] == "failed"
    assert "came without logprobs" in world.reasons[request_id]
    world.assert_no_leak()


def occupy(world: Any, num_tokens: int) -> None:
    """The prefill node serves a request of its own that takes all of its pages."""
    spec = RequestSpec(
        request_id=(99).to_bytes(16, "big"),
        attempt=1,
        prompt_ids=TokenIds(prompt(99, 40)),
        output_ids=TokenIds(),
        params=SamplingParams(max_tokens=num_tokens - 40, temperature=0.0),
        seed=1,
        choice=0,
        tenant="default",
        priority=0,
        targets=SlaTargets(sla_class="standard", ttft_ms=1, tpot_ms=1),
        deadline_s=None,
        sequence=99,
    )
    world.tell("p", FromPeer(GATEWAY, Decode(spec=spec, prefill=None)))


def test_a_grant_is_not_held_for_ever_by_a_node_without_pages(pair: SimpleNamespace) -> None:
    """Its prompt was parked; when its turn comes the prefill node's own pages are gone."""
    world = pair.World(prefill_pages=16, decode_pages=12)
    first = world.submit(1, 60, 120)
    world.run_until(lambda: world.d.core.load(0).num_decode_running)
    second = world.submit(2, 60, 120)
    world.run_until(lambda: world.p.ledger.counts().active == 0)
    occupy(world, 256)
    world.run_until(lambda: world.p.ledger.num_available == 0)
    world.cancel(first)
    world.run_until(lambda: world.d.ledger.counts().granted)
    granted_at = world.now
    world.run_until(lambda: second in world.endings)
    assert world.endings[second] == "failed" and "overloaded" in world.reasons[second]
    assert world.now - granted_at >= GRANTED_PATIENCE_S
    world.run()
    world.assert_no_leak()
