"""The benchmark of the guards runs, and what it says is plausible; speed is for quiet machines."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.cost.altered import GUARDS, take_out

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def quick() -> tuple[str, dict[str, Any]]:
    """The tables and the JSON of a small run."""
    command = [ROOT / "scripts/bench_guards", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=28)
    assert done.returncode == 0, done.stderr
    *tables, last = done.stdout.splitlines()
    return "\n".join(tables), json.loads(last)


@pytest.mark.slow
def test_hand_offs_are_measured_with_and_without_guards(quick) -> None:
    tables, document = quick
    whole, bare = document["serving"]
    assert (whole["without"], bare["without"]) == ("as it is", "all three")
    assert "(as it is, twice)" in tables and "all three" in tables
    for row in (whole, bare):
        medians = row["medians"]
        assert row["kv_bytes"] > 0
        assert 0 < medians["single_transfer_ms"] <= medians["single_ms"] < 5_000
        assert 0 < medians["loaded_transfer_ms"] <= medians["loaded_ms"] < 5_000
        assert 1 < medians["tokens_per_s"] < 1e6
        for ratio in row["ratios"].values():
            assert 0 < ratio["least"] <= ratio["median"] <= ratio["most"]


@pytest.mark.slow
def test_control_messages_are_measured_while_pages_move(quick) -> None:
    tables, document = quick
    idle, busy = document["control"]
    assert (idle["mb_per_s"], busy["condition"]) == (0, "zmq, CURVE")
    assert busy["mb_per_s"] > 1 and busy["condition"] in tables
    for row in (idle, busy):
        assert row["num_pings"] == 50
        latency = row["latency_ms"]
        assert 0 < latency["p50"] <= latency["p99"] <= latency["max"] < 5_000
    assert document["machine"]["commit"] and document["machine"]["num_cpus"] >= 1


def test_guards_that_are_not_there_cannot_be_taken_out() -> None:
    assert take_out("nothing") == ()
    assert len(take_out("checksums,acknowledgements")) == sum(map(len, GUARDS.values()))
    with pytest.raises(ValueError, match="no such guard"):
        take_out("checksums,locks")


def test_what_is_replaced_is_there_and_is_replaced() -> None:
    """A renamed class must not leave a benchmark that compares the product with itself."""
    for whose, which, replacement in take_out("checksums,acknowledgements"):
        assert getattr(whose, which) is not replacement
    program = (
        "from scripts.cost import altered\n"
        "for whose, which, new in altered.take_out('checksums,acknowledgements'):\n"
        "    setattr(whose, which, new)\n"
        "import gateway.server, node.__main__ as root, kv_transfer.zmq_pages as pages\n"
        "assert gateway.server.Sessions is altered.NoSessions\n"
        "assert gateway.server.NodeLinks is altered.QuietLinks\n"
        "assert root.Emitter is altered.ForgetfulEmitter\n"
        "hasher = pages.ChunkHasher((bytes(16), 1), 1, 0, 1)\n"
        "assert hasher.chunk_sum().checksum == bytes(8)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 0, done.stderr
