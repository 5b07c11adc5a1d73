"""`tandem drain` against a scripted coordinator."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tandem import cli_drain
from tandem.cli import main
from tandem.messages.membership import (
    ClusterStatus,
    DrainAnswer,
    DrainMember,
    FromOperator,
    GatewayStatus,
    NodeLoad,
    NodeStatus,
    PageCounts,
    RoleWeights,
    StatusQuery,
)

PAGES = PageCounts(
    free=1, granted=0, filling=0, ready=0, active=0, cached=0, draining=0, quarantined=0
)
LOAD = NodeLoad(
    num_steps=1, step_age_s=0, num_prefill_waiting=1, num_prefill_tokens_waiting=9,
    num_decode_running=2, num_decode_waiting=0, num_transfers=0, num_requests=3, num_tokens_out=0,
    pages=PAGES,
)  # fmt: skip
NODE = NodeStatus(
    node_id="decode-0", epoch=3, weights=RoleWeights(prefill=0, decode=1),
    control_address="tcp://127.0.0.1:1", device="cpu", num_pages=1, heartbeat_age_s=0.1,
    draining=False, load=LOAD,
)  # fmt: skip
DRAINING = msgspec.structs.replace(NODE, draining=True)
RESTARTED = msgspec.structs.replace(NODE, epoch=4)
GATEWAY = GatewayStatus(gateway_id="gateway-0", num_live_requests=7, heartbeat_age_s=0.1)


def status(*members: NodeStatus | GatewayStatus) -> ClusterStatus:
    return ClusterStatus(
        coordinator_incarnation=1, uptime_s=1.0, model=None, classes=(), num_live_requests=0,
        num_dropped_messages=0,
        nodes=tuple(m for m in members if isinstance(m, NodeStatus)),
        gateways=tuple(m for m in members if isinstance(m, GatewayStatus)),
    )  # fmt: skip


@pytest.fixture
def coordinator(
    server_of: Callable[[Any, Callable[[Any], Any]], Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[str, list[DrainMember]]]:
    """Starts one that shows the given states, one per question, the last for ever."""
    monkeypatch.setattr(cli_drain, "WATCH_S", 0.01)

    def start(*states: ClusterStatus, accepts: bool = True) -> tuple[str, list[DrainMember]]:
        left = list(states)
        asked: list[DrainMember] = []

        def answer(message: Any) -> Any:
            if isinstance(message, StatusQuery):
                return left.pop(0) if len(left) > 1 else left[0]
            asked.append(message)
            text = f"{message.name} drains" if accepts else "no such member; known: decode-0"
            return DrainAnswer(accepted=accepts, message=text)

        return server_of(FromOperator, answer), asked

    return start


def test_drain_returns_once_it_is_ordered(
    coordinator: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    address, asked = coordinator(status(NODE))
    assert main(["drain", "decode-0", "--force", "--coordinator", address]) == 0
    assert capsys.readouterr().out == "decode-0 drains\n"
    assert asked == [DrainMember(name="decode-0", force=True)]


def test_a_refusal_is_an_error(coordinator: Any, capsys: pytest.CaptureFixture[str]) -> None:
    address, asked = coordinator(status(NODE), accepts=False)
    assert main(["drain", "decode-7", "--wait", "--coordinator", address]) == 1
    assert capsys.readouterr().err == "tandem drain: no such member; known: decode-0\n"
    assert asked == [DrainMember(name="decode-7")]


def test_wait_says_what_is_left_until_the_node_has_left(
    coordinator: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    less = msgspec.structs.replace(
        DRAINING, load=msgspec.structs.replace(LOAD, num_decode_running=1, num_requests=2)
    )
    states = [status(NODE), status(NODE), status(DRAINING), status(less), status(GATEWAY)]
    address, _ = coordinator(*states)
    assert main(["drain", "decode-0", "--wait", "--coordinator", address]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "decode-0 drains",
        "decode-0: 1 prompts, 2 decoding, 0 waiting to decode, 0 transfers, 3 requests in all",
        "decode-0: 1 prompts, 1 decoding, 0 waiting to decode, 0 transfers, 2 requests in all",
        "decode-0 has left",
    ]


@pytest.mark.parametrize(
    "states",
    [
        [status(NODE), status(DRAINING), status(NODE)],
        [status(NODE), status(NODE), status(RESTARTED)],
        [status(GATEWAY), status(msgspec.structs.replace(GATEWAY, draining=True)), status(GATEWAY)],
    ],
)
def test_a_member_that_was_started_again_has_left(
    coordinator: Any, capsys: pytest.CaptureFixture[str], states: list[ClusterStatus]
) -> None:
    address, _ = coordinator(*states)
    name = "decode-0" if states[0].nodes else "gateway-0"
    assert main(["drain", name, "--wait", "--coordinator", address]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{name} has left and is back"


def test_nobody_answers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli_drain, "ANSWER_S", 0.2)
    assert main(["drain", "x", "--coordinator", "tcp://127.0.0.1:9"]) == 1
    assert "no coordinator answers at tcp://127.0.0.1:9" in capsys.readouterr().err
