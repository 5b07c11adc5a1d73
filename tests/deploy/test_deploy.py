"""Image, compose file and units against the tree and the programs' own flags. Nothing is started.

deploy/README.md says what this does not show.
"""

import ast
import configparser
import importlib
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from coordinator.config import CoordinatorConfig
from gateway.config import GatewayConfig
from node.config import NodeConfig
from tandem.config import load_config

ROOT = Path(__file__).resolve().parents[2]
DOCKER, SYSTEMD = ROOT / "deploy/docker", ROOT / "deploy/systemd"
CONFIGS: dict[str, tuple[Any, str]] = {
    "coordinator": (CoordinatorConfig, "coordinator"),
    "gateway": (GatewayConfig, "gateway"),
    "prefill_node": (NodeConfig, "node"),
    "decode_node": (NodeConfig, "node"),
}


def load(command: list[str]) -> Any:
    """The config of `MODULE FLAGS...`; exits where the program would."""
    config_class, section = CONFIGS[command[0]]
    return load_config(config_class, command[1:], prog=command[0], section=section, env={})


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The file, with its variables' defaults."""
    yaml = importlib.import_module("yaml")
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (DOCKER / "compose.yaml").read_text())
    return yaml.safe_load(text)


def copied() -> list[str]:
    """What the image takes from the tree."""
    lines = (DOCKER / "Dockerfile").read_text().splitlines()
    copies = [line.split()[1:-1] for line in lines if line.startswith("COPY ")]
    return [word for words in copies if not words[0].startswith("--from") for word in words]


def test_the_image_gets_every_package_and_only_what_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.split(".")[0] for name in project["tool"]["setuptools"]["packages"]}
    assert packages <= set(copied())
    assert all((ROOT / name).exists() for name in copied())
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == set(copied())
    extras = re.search(r"ARG EXTRAS=(\S+)", (DOCKER / "Dockerfile").read_text())
    assert extras is not None and set(extras[1].split(",")) <= set(
        project["project"]["optional-dependencies"]
    )


def test_the_image_does_not_run_as_root() -> None:
    words = [line.split() for line in (DOCKER / "Dockerfile").read_text().splitlines()]
    users = [line[1] for line in words if line[:1] == ["USER"]]
    assert users and users[-1] == "tandem"


def test_every_service_starts_with_flags_that_its_program_has(compose: dict[str, Any]) -> None:
    configs = {name: load(service["command"]) for name, service in compose["services"].items()}
    assert set(configs) == {"coordinator", "gateway", "prefill-0", "decode-0"}
    gateway, coordinator = configs["gateway"], configs["coordinator"]
    # They find one another by the defaults, over the loopback that they share.
    assert coordinator.port == int(gateway.coordinator.rsplit(":", 1)[1])
    assert {config.host for config in configs.values()} == {"127.0.0.1"}
    ports = compose["services"]["coordinator"]["ports"]
    assert {f"{coordinator.dashboard_port}", f"{gateway.http_port}"} == {
        port.rsplit(":", 1)[1] for port in ports
    }
    for name in ("prefill-0", "decode-0"):
        grace_s = float(compose["services"][name]["stop_grace_period"].removesuffix("s"))
        assert configs[name].drain_s < grace_s and configs[name].name == name


def test_services_are_confined(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["user"] == "10001:10001" and service["cap_drop"] == ["ALL"], name
        assert service["read_only"] and "privileged" not in service, name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        sources = {volume.split(":")[0] for volume in service.get("volumes", ())}
        named = {source for source in sources if not source.startswith(("/", "."))}
        assert named <= set(compose["volumes"]), name


def test_health_checks_ask_the_ports_that_are_listened_on(compose: dict[str, Any]) -> None:
    for name, port in (("coordinator", 7400), ("gateway", 8000)):
        command, interpreter, flag, program = compose["services"][name]["healthcheck"]["test"]
        assert (command, interpreter, flag) == ("CMD", "python", "-c")
        assert f"http://127.0.0.1:{port}/health" in program
        assert ast.parse(program)


def read_unit(name: str) -> configparser.RawConfigParser:
    unit = configparser.RawConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(SYSTEMD / name)
    return unit


@pytest.mark.parametrize("name", sorted(path.name for path in SYSTEMD.glob("*.service")))
def test_every_unit_starts_with_flags_that_its_program_has(name: str, tmp_path: Path) -> None:
    service = read_unit(name)["Service"]
    python, isolated, module, *command = shlex.split(service["ExecStart"])
    assert (python, isolated, module) == ("/opt/tandem/bin/python", "-P", "-m")
    file = tmp_path / "tandem.toml"
    shutil.copy(SYSTEMD / "tandem.toml", file)
    command = [str(file) if word == "/etc/tandem/tandem.toml" else word for word in command]
    config = load([word.replace("%i", "0") for word in command])
    assert float(getattr(config, "drain_s", 0.0)) < float(service["TimeoutStopSec"])
    assert service["User"] == "tandem" and service["NoNewPrivileges"] == "yes"
    wanted = read_unit("tandem.target")["Unit"]["Wants"].split()
    assert name.replace("@", "@0") in wanted


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    """Where its tool is installed; units are parsed by us in any case."""
    units = sorted(SYSTEMD.glob("*.service"))
    assert all(read_unit(unit.name).sections() == ["Unit", "Service", "Install"] for unit in units)
    tool = shutil.which("systemd-analyze")
    if tool is None:
        return
    for unit in SYSTEMD.iterdir():
        text = unit.read_text().replace("/opt/tandem/bin/python", sys.executable)
        (tmp_path / unit.name).write_text(text)
    names = [unit.name.replace("@", "@0") for unit in units]
    command = [tool, "verify", "--man=no", *(str(tmp_path / n) for n in [*names, "tandem.target"])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
