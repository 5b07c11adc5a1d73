"""`tandem doctor`: what it makes of a host and of a deployment."""

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from tandem import cli_doctor
from tandem.checks import Check, folder_check, port_check, render_checks, tried
from tandem.cli import main
from tandem.doctor import (
    OPTIONAL,
    REQUIRED,
    HostFacts,
    Reached,
    check_deployment,
    check_host,
    check_transports,
    is_loopback,
)
from tandem.messages.membership import (
    ClusterStatus,
    GatewayStatus,
    LinkReport,
    NodeStatus,
    RoleWeights,
)

FACTS = HostFacts(
    python="3.11", versions=dict.fromkeys((*REQUIRED, *OPTIONAL), "1.0"), libzmq="4.3.5",
    has_curve=True, gpus=(), driver=None, num_cpus=2, free_memory_bytes=8 << 30,
    shared_memory_bytes=4 << 30, max_descriptors=65536, clock_source="tsc",
)  # fmt: skip
LINK = LinkReport(
    node_id="decode-0", transport="shared_memory", bytes_per_s=9e9,
    explanation="to decode-0: shared_memory 9.0 GB/s, zmq 1.0 GB/s: shared_memory",
)  # fmt: skip


def node(name: str, address: str = "tcp://127.0.0.1:1", **changes: Any) -> NodeStatus:
    is_prefill = name.startswith("prefill")
    whole = NodeStatus(
        node_id=name, epoch=1, control_address=address, device="cpu", num_pages=1,
        heartbeat_age_s=0.2, draining=False, load=None,
        weights=RoleWeights(prefill=float(is_prefill), decode=float(not is_prefill)),
    )  # fmt: skip
    return msgspec.structs.replace(whole, **changes)


def deployment(*nodes: NodeStatus) -> ClusterStatus:
    gateway = GatewayStatus(gateway_id="gateway", num_live_requests=0, heartbeat_age_s=0.1)
    return ClusterStatus(
        coordinator_incarnation=1, uptime_s=1.0, model=None, nodes=nodes, gateways=(gateway,),
        classes=(), num_live_requests=0, num_dropped_messages=0,
    )  # fmt: skip


def found(checks: list[Check]) -> dict[str, Check]:
    return {check.subject: check for check in checks}


def test_a_good_host_has_no_complaints() -> None:
    assert {check.status for check in check_host(FACTS)} == {"ok"}


@pytest.mark.parametrize(
    ("changes", "subject", "status", "words"),
    [
        ({"versions": {**FACTS.versions, "torch": None}}, "packages", "fail", "missing: torch"),
        ({"has_curve": False}, "libzmq", "warn", "without CURVE"),
        ({"shared_memory_bytes": 64 << 20}, "/dev/shm", "warn", "--shm-size"),
        ({"max_descriptors": 1024}, "open files", "warn", "ulimit -n"),
        ({"clock_source": "hpet"}, "clock", "warn", "hpet"),
        ({"gpus": ("H200",), "driver": "580"}, "device", "ok", "H200; driver 580"),
        (
            {"gpus": ("H200",), "versions": {**FACTS.versions, "cupy-cuda13x": None}},
            "device", "warn", "tandem-serve[cuda]",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_host(changes: Any, subject: str, status: str, words: str) -> None:
    facts = HostFacts(**{f: getattr(FACTS, f) for f in HostFacts.__slots__} | changes)
    check = found(check_host(facts))[subject]
    assert check.status == status and words in f"{check.text}; {check.advice}"


def test_slow_transports_are_told() -> None:
    fast, slow = check_transports({"shared_memory": 9e9, "zmq": 50e6})
    assert (fast.status, slow.status) == ("ok", "warn") and slow.text.startswith("50 MB/s")


def test_a_deployment_with_all_that_can_be_wrong() -> None:
    nodes = (
        node("prefill-0", "tcp://10.0.0.1:5", links=(LINK,), num_links=3, heartbeat_age_s=9.0),
        node("prefill-1", links=(msgspec.structs.replace(LINK, transport=None),), num_links=1),
        node("prefill-2", "tcp://10.0.0.2:5"),
    )
    reached = [Reached(n.control_address) for n in nodes[:2]]
    reached.append(Reached("tcp://10.0.0.2:5", "refused"))
    checks = found(check_deployment(deployment(*nodes), reached))
    failed = {subject for subject, check in checks.items() if check.status == "fail"}
    assert failed == {
        "members", "node prefill-0", "port of prefill-2", "address of prefill-1",
        "prefill-1 -> decode-0",
    }  # fmt: skip
    link = checks["prefill-0 -> decode-0"]
    assert link.text.startswith("shared_memory, 9,000 MB/s (to decode-0: ")
    assert "worst 1 of 3" in checks["links of prefill-0"].text
    assert "the first request makes one" in checks["links of prefill-2"].text


def test_one_host_may_use_loopback() -> None:
    nodes = (node("prefill-0"), node("decode-0", "tcp://localhost:7"))
    checks = check_deployment(deployment(*nodes), [Reached(n.control_address) for n in nodes])
    assert {check.status for check in checks} == {"ok"}
    assert is_loopback("tcp://[::1]:5") and not is_loopback("tcp://10.0.0.1:5")


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_doctor_of_a_running_deployment(
    coordinator_of: Callable[[ClusterStatus], str],
    listener: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Transports are measured by a process of their own, as `tandem doctor` does alone."""
    status = deployment(
        node("prefill-0", f"tcp://127.0.0.1:{listener}", links=(LINK,), num_links=1),
        node("decode-0", "tcp://127.0.0.1:9"),
    )
    assert main(["doctor", "--json", "--coordinator", coordinator_of(status)]) == 1
    checks = {each["subject"]: each for each in json.loads(capsys.readouterr().out)["checks"]}
    for transport in ("shared_memory", "zmq", "zmq+CURVE"):
        assert checks[transport]["status"] in ("ok", "warn")
    assert checks["port of prefill-0"]["status"] == "ok"
    assert checks["port of decode-0"]["status"] == "fail"
    assert checks["members"]["text"] == "1 nodes prefill, 1 decode, 1 gateways"


def test_doctor_without_a_coordinator_that_answers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tandem.status.ANSWER_S", 0.2)
    monkeypatch.setattr(cli_doctor, "measure_transports", lambda: [])
    assert main(["doctor", "--coordinator", "tcp://127.0.0.1:9"]) == 1
    assert "fail  coordinator" in capsys.readouterr().out


def test_doctor_asks_a_gateway_for_answers(
    gateway: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli_doctor, "measure_transports", lambda: [])
    monkeypatch.setattr(cli_doctor, "BEAT_S", 0.0)
    assert main(["doctor", "--gateway", gateway.address]) == 0
    assert "8 of 2 tokens took" in capsys.readouterr().out
    assert main(["doctor", "--gateway", "nowhere"]) == 1
    assert "fail  requests" in capsys.readouterr().out


def test_checks_of_ports_folders_and_attempts(listener: int, tmp_path: Any) -> None:
    taken = port_check("http port", "127.0.0.1", listener)
    assert taken.status == "fail" and "--http-port" in taken.advice
    assert port_check("port", "127.0.0.1", 0).status == port_check("port", "x", -1).status == "ok"
    assert folder_check("run dir", None) == []
    (good,) = folder_check("run dir", str(tmp_path / "new" / "folder"))
    assert good.status == "ok"

    def fails() -> str:
        raise ValueError("because")

    assert tried("it", fails) == Check("it", "fail", "because")
    assert render_checks([tried("it", fails)]) == "fail  it  because\n1 failed, 0 warnings"
