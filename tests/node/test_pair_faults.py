"""Two whole nodes when something is wrong: silent gateways, bad commands, failed hand-offs."""

from types import SimpleNamespace

import msgspec
import pytest

from node.core import Admitted, GatewaySilent
from tandem.frames import TokenIds
from tandem.messages.common import SlaTargets
from tandem.messages.serving import Decode, Prefill, RequestSpec
from tandem.sampling import SamplingParams

VOCAB = 1000
GATEWAY = b"gateway/g/1"
TARGETS = SlaTargets(sla_class="standard", ttft_ms=1, tpot_ms=1)


def test_a_silent_gateway_leaves_nothing_behind(pair: SimpleNamespace) -> None:
    for moment in range(0, 20, 3):
        world = pair.World()
        for n in range(3):
            world.submit(n, 100, 40)
        for _ in range(moment):
            world.turn()
        world.unanswered.clear()
        for is_dead in (False, True):
            for node in (world.p, world.d):
                event = GatewaySilent(GATEWAY, is_dead)
                world.execute(node, node.core.handle(event, world.now))
            for _ in range(60):
                world.turn()
        world.run()
        world.assert_no_leak()


def test_tokens_are_kept_for_a_silent_gateway_and_not_for_a_dead_one(pair: SimpleNamespace) -> None:
    world = pair.World()
    world.submit(1, 40, 10, local=True)
    world.run_until(lambda: world.tokens)
    world.at_gateway = lambda name, message: None  # nothing is acknowledged any more
    world.run_until(lambda: not world.d.core.load(0).num_decode_running)
    for is_dead in (False, True):
        assert not world.d.core.is_idle
        world.tell("d", GatewaySilent(GATEWAY, is_dead))
    assert world.d.core.is_idle


def test_nothing_is_emitted_before_admission(pair: SimpleNamespace) -> None:
    """An emission without an epoch could not be fenced."""
    world = pair.World()
    for node in (world.p, world.d):
        node.state.epoch = 0
    request_id = world.submit(1, 40, 10)
    for _ in range(40):
        world.turn()
    assert not world.tokens
    assert world.d.state.emitter.num_unacknowledged
    for name in ("p", "d"):
        world.tell(name, Admitted(7))
    world.run()
    assert pair.stream(world, request_id) == list(pair.expected(1, 40, 10))


@pytest.mark.parametrize(
    "change",
    [
        {"prompt_ids": TokenIds([VOCAB])},
        {"output_ids": TokenIds([-1])},
        {"params": SamplingParams(max_tokens=4, min_p=-1.0)},
        {"params": SamplingParams(max_tokens=100_000)},
        {"params": SamplingParams(max_tokens=4096 - 19)},
        {"params": SamplingParams(max_tokens=None)},
        {"prompt_ids": TokenIds()},
    ],
)
def test_commands_that_cannot_run_are_refused_not_asserted(
    pair: SimpleNamespace, change: dict[str, object]
) -> None:
    world = pair.World()
    world.submit(1, 20, 4)
    for key, message in list(world.unanswered.items()):
        spec = msgspec.structs.replace(message.spec, **change)  # type: ignore[attr-defined]
        world.unanswered[key] = msgspec.structs.replace(message, spec=spec)
    world.run()
    assert {r.command for r in world.refusals} == {"prefill", "decode"}
    assert {r.code for r in world.refusals} == {"invalid_request"}
    world.assert_no_leak()


def test_a_hand_over_to_itself_is_refused(pair: SimpleNamespace) -> None:
    world = pair.World()
    world.submit(1, 20, 4)
    (key,) = [k for k in world.unanswered if k[1] == "prefill"]
    message = world.unanswered.pop(key)
    world.unanswered[("d", *key[1:])] = message
    for _ in range(3):
        world.turn()
    assert "without a prefill node" in world.refusals[0].message


def test_a_hand_off_that_failed_before_its_command_came_is_told(pair: SimpleNamespace) -> None:
    world = pair.World()
    request_id = world.submit(1, 60, 4)
    (late,) = [k for k in world.unanswered if k[1] == "decode"]
    decode = world.unanswered.pop(late)
    world.verify_error = "checksum of pages 0 to 3 differs"
    for _ in range(30):
        world.turn()
    world.unanswered[late] = decode
    for _ in range(5):
        world.turn()
    told = [(r.command, r.code) for r in world.refusals]
    assert ("decode", "transfer_failed") in told
    world.cancel(request_id)
    for _ in range(60):
        world.turn()
    assert world.d.core.load(0).num_decode_running == 0


def test_an_earlier_attempt_ends_when_a_later_one_comes(pair: SimpleNamespace) -> None:
    world = pair.World()
    request_id = world.submit(1, 40, 500)
    for _ in range(20):
        world.turn()
    assert world.d.core.load(0).num_decode_running == 1
    spec = RequestSpec(
        request_id=request_id,
        attempt=2,
        prompt_ids=TokenIds(pair.prompt(1, 40)),
        output_ids=TokenIds(list(pair.expected(1, 40, 3))),
        params=SamplingParams(max_tokens=20, temperature=0.0),
        seed=1,
        choice=0,
        tenant="default",
        priority=0,
        targets=TARGETS,
        deadline_s=None,
        sequence=1,
    )
    world.tokens.clear()
    world.command("p", Prefill(spec=spec, decode=world.d.ref), "prefill", request_id)
    world.command("d", Decode(spec=spec, prefill=world.p.ref), "decode", request_id)
    for _ in range(60):
        world.turn()
    got = world.tokens[request_id]
    whole = list(pair.expected(1, 40, 500))
    assert all(whole[index] == token for index, token in got.items())
    assert max(got) == 19
    assert world.d.core.load(0).num_decode_running == 0
