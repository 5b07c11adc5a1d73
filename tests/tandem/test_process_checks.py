"""`--check` of every process, and of `tandem up`: what would keep it from starting."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from coordinator.checks import check as check_coordinator
from coordinator.config import CoordinatorConfig
from gateway.checks import check as check_gateway
from gateway.config import GatewayConfig
from node.checks import check as check_node
from node.config import NodeConfig
from tandem.bearer import add_key
from tandem.checks import Check
from tandem.cli import main
from tandem.keys import KeyFolder

PORTS = {"port": 0, "dashboard_port": -1}


def failed(checks: list[Check]) -> dict[str, str]:
    return {each.subject: f"{each.text}; {each.advice}" for each in checks if each.status == "fail"}


def test_all_is_well(demo_model: Path, tmp_path: Path) -> None:
    assert failed(check_coordinator(CoordinatorConfig(**PORTS))) == {}
    folder = KeyFolder.create(tmp_path / "keys").folder
    KeyFolder(folder).add("gateway", "gateway")
    add_key(folder, "alice", "client")
    model = str(demo_model)
    gateway = GatewayConfig(model=model, port=0, http_port=0, keys=str(folder))
    checks = {each.subject: each for each in check_gateway(gateway)}
    assert {each.status for each in checks.values()} == {"ok"}
    assert checks["bearer keys"].text == "of alice" and "gateway/gateway" in checks["keys"].text
    node = check_node(NodeConfig(model=model, num_pages=512, run_dir=str(tmp_path)))
    assert failed(node) == {} and "4 layers" in node[0].text


@pytest.mark.parametrize(
    ("changes", "subject", "words"),
    [
        ({"sla_classes": ("fast",)}, "SLA classes", "fast"),
        ({"placement_policy": "magic"}, "SLA classes", "magic"),
        ({"host": "10.255.255.1"}, "port", "cannot be used"),
        ({"keys": "/nowhere"}, "keys", "/nowhere"),
    ],
)
def test_what_a_coordinator_cannot_start_with(changes: Any, subject: str, words: str) -> None:
    config = CoordinatorConfig(**{**PORTS, "port": 27_300, **changes})
    assert words in failed(check_coordinator(config))[subject]


@pytest.mark.parametrize(
    ("changes", "subject", "words"),
    [
        ({"model": "/nowhere"}, "model", "there is no model folder /nowhere"),
        ({"max_model_len": 10**6}, "model", "lower it"),
        ({"tenants": "/nowhere.toml"}, "tenants", "/nowhere.toml"),
        ({"length_predictor": "/nowhere"}, "length predictor", "/nowhere"),
        ({"event_log": f"{__file__}/folder"}, "event log", "cannot be written"),
    ],
)
def test_what_a_gateway_cannot_start_with(
    demo_model: Path, changes: Any, subject: str, words: str
) -> None:
    config = GatewayConfig(**{"model": str(demo_model), "port": 0, "http_port": -1, **changes})
    assert words in failed(check_gateway(config))[subject]


@pytest.mark.parametrize(
    ("changes", "subject", "words"),
    [
        ({"num_pages": 8}, "pages", "cannot hold one sequence of 4096 tokens"),
        ({"batch_policy": "magic"}, "policies", "magic"),
        ({"device": "tpu"}, "device", "use cpu, cuda or cuda:N"),
    ],
)
def test_what_a_node_cannot_start_with(
    demo_model: Path, changes: Any, subject: str, words: str
) -> None:
    config = NodeConfig(model=str(demo_model), **changes)
    assert words in failed(check_node(config))[subject]


def test_a_model_of_the_hub_that_is_not_here_is_no_failure() -> None:
    checks = check_node(NodeConfig(model="somebody/some-model"))
    assert checks[0].status == "warn" and "would be downloaded" in checks[0].text


def test_up_asks_every_kind_of_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **unused: Any) -> "subprocess.CompletedProcess[str]":
        asked.append(command[3:])
        return subprocess.CompletedProcess(command, int(command[3] == "gateway"))

    monkeypatch.setattr("tandem.cli_up.subprocess.run", run)
    flags = ["up", "--model", "m", "--decode", "3", "--secure", "--num-pages", "7"]
    assert main([*flags, "--check"]) == 1
    assert [command[0] for command in asked] == [
        "coordinator", "decode_node", "gateway", "prefill_node",
    ]  # fmt: skip
    assert all(command[-1] == "--check" and "--keys" not in command for command in asked)
    assert "--num-pages" in asked[1] and "gateway:" in capsys.readouterr().out
    asked.clear()
    main([*flags, "--dump-config"])
    assert [command[0] for command in asked] == ["coordinator", "gateway", "prefill_node"]
    assert main(["up", "--model", "m", "--api-key", "x"]) == 1
    assert "keys are kept as digests" in capsys.readouterr().err
