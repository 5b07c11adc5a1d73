"""What real processes recorded is decided again by the same cores; a change is noticed."""

import subprocess
from pathlib import Path

import pytest

from tandem.client import Client
from tandem.launch import LocalCluster
from tandem.sampling import SamplingParams

ROOT = Path(__file__).resolve().parents[2]


def replay(log: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [ROOT / "scripts/replay", log, *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=20)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logs of a small deployment that answered six requests and stopped."""
    folder = tmp_path_factory.mktemp("events")
    record = ("--event-log", str(folder))
    cluster = LocalCluster(
        model=str(ROOT / "models/demo"),
        node_args=("--device", "fake", "--num-pages", "64", *record),
        gateway_args=record,
        coordinator_args=record,
    )
    with cluster, Client(cluster.gateway_address) as client:
        params = SamplingParams(max_tokens=12, ignore_eos=True)
        prompts = [[number, *range(1, 60)] for number in range(6)]
        client.generate(prompts, params=params, progress=False)
    return folder


@pytest.mark.slow
def test_every_core_decides_the_same_again(logs: Path) -> None:
    recorded = sorted(logs.iterdir())
    assert len(recorded) == 4, recorded
    for log in recorded:
        done = replay(log)
        assert done.returncode == 0, (log, done.stdout, done.stderr)
        assert "the same decisions" in done.stdout
        num_calls = int(done.stdout.split(":")[1].split()[0])
        assert num_calls > 20


@pytest.mark.slow
def test_another_decision_is_shown(logs: Path, tmp_path: Path) -> None:
    log = (logs / "coordinator.events").read_bytes()
    altered = tmp_path / "altered"
    altered.write_bytes(log.replace(b"lease_s", b"leasE_s", 1))
    assert replay(altered).returncode == 2  # the header names a field that there is not
    sequence = log.rindex(b"HeartbeatAck")
    position = log.index(b"sequence", sequence) + len(b"sequence")
    changed = bytes([log[position] ^ 1])
    altered.write_bytes(log[:position] + changed + log[position + 1 :])
    done = replay(altered)
    assert done.returncode == 1, done.stdout
    assert "recorded" in done.stdout and "another decision" in done.stdout


@pytest.mark.slow
def test_calls_are_shown(logs: Path) -> None:
    done = replay(logs / "coordinator.events", "--show", "--from", "0", "--to", "3")
    assert done.stdout.count("\n    -> ") == 3


def test_a_file_that_is_no_log_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_text("no")
    done = replay(file)
    assert done.returncode == 2
    assert "no event log" in done.stderr
