"""`tandem simulate` and `tandem plan` as a user runs them."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOAD = ["--profile", "a100-opt13b", "--trace", "512:16", "--num-requests", "40"]


def tandem(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tandem.cli", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=25,
    )


def test_simulate_prints_a_table_and_json_and_is_deterministic():
    flags = [*LOAD, "--rate", "4", "--nodes", "1p1d", "--num-seeds", "2"]
    flags += ["--balance", "on", "--balance-dwell-s", "5", "--early-rejection", "on"]
    first, second = (tandem("simulate", *flags) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    document = json.loads(first.stdout.splitlines()[-1])
    assert document["nodes"] == "1p1d"
    assert document["result"]["num_finished"] == document["result"]["num_requests"]
    assert document["result"]["num_role_changes"] == 0
    assert document["intervals"]["attainment"]["mean"] > 0
    assert "goodput" in first.stdout
    assert "seed 1: done" in first.stderr


def test_plan_recommends_and_judges(tmp_path):
    flags = [*LOAD, "--rate", "6", "--max-nodes", "3", "--num-seeds", "1", "--sla", "300:60:0.9"]
    done = tandem("plan", *flags, "--chunk-tokens", "2048", "--plots", str(tmp_path / "plots"))
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["verdict"].startswith(("yes", "no"))
    assert document["disaggregated"]["goodput_per_node"] > 0
    assert document["colocated"]["goodput_per_node"] > 0
    assert document["break_even_tokens"] is None or document["break_even_tokens"] > 0
    is_drawn = (tmp_path / "plots" / "goodput.png").exists()
    assert is_drawn == bool(document["plots"])
    assert is_drawn or "matplotlib is not installed" in done.stderr
    assert "keep both targets" in done.stderr


def test_wrong_flags_are_explained():
    done = tandem("simulate", *LOAD, "--rate", "4", "--nodes", "2x")
    assert done.returncode == 1
    assert "2p3d" in done.stderr
