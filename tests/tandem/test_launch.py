"""LocalCluster with small stand-ins for the processes: start, deaths, drain order, no orphans."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tandem import child_process
from tandem.child_process import child_environment
from tandem.launch import FREE_PORTS, ClusterError, LocalCluster
from tandem.launch_plan import ClusterPlan

ROOT = Path(__file__).resolve().parents[2]


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that only waits for its parent's `wait` does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def cluster(
    fake_processes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., LocalCluster]:
    """Makes clusters of stand-ins, with logs in `tmp_path/run`."""
    monkeypatch.setattr(child_process, "PACKAGES_FOLDER", fake_processes)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def make(**options: object) -> LocalCluster:
        settings = {"model": "m", "run_dir": tmp_path / "run", "drain_s": 5.0, **options}
        return LocalCluster(**settings)  # type: ignore[arg-type]

    return make


def test_start_and_drain_in_order(
    cluster: Callable[..., LocalCluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_EVENTS", str(tmp_path / "events"))
    seen = []
    with cluster(num_decode=2, sink=lambda name, line: seen.append((name, line))) as running:
        assert list(running.processes) == [
            "prefill-0", "decode-0", "decode-1", "gateway", "coordinator",
        ]  # fmt: skip
        assert running.processes["gateway"].address == running.gateway_address
        assert running.processes["coordinator"].address == running.coordinator_address
        assert running.dead() == []
        assert ("gateway", "loading") in seen and "loading" in running.logs("decode-1")
        pids = [process.pid for process in running.processes.values()]
    assert not any(is_alive(pid) for pid in pids)
    assert {p.exit_status for p in running.processes.values()} == {0}
    events = (tmp_path / "events").read_text().split()
    assert events[0] == "gateway" and events[-1] == "coordinator"
    assert sorted(events[1:-1]) == ["decode-0", "decode-1", "prefill-0"]
    assert running.stop() == []


def test_a_clean_stop_removes_only_its_own_folder(cluster: Callable[..., LocalCluster]) -> None:
    with cluster(run_dir=None) as running:
        assert running.run_dir.is_dir()
    assert not running.run_dir.exists()
    with cluster() as running:
        pass
    assert (running.run_dir / "gateway.log").exists()


def test_an_early_death_is_explained_and_ends_all(cluster: Callable[..., LocalCluster]) -> None:
    running = cluster(gateway_args=["--fake", "die"])
    with pytest.raises(ClusterError) as caught:
        running.start()
    text = str(caught.value)
    assert text.startswith("gateway ended (exit status 3); its last lines (all in ")
    assert "    cannot find the tokenizer" in text
    assert not any(is_alive(p.pid) for p in running.processes.values())


def test_processes_that_do_not_get_ready_are_named(cluster: Callable[..., LocalCluster]) -> None:
    running = cluster(node_args=["--fake", "slow"], start_timeout_s=1.5)
    with pytest.raises(ClusterError, match=r"after 1\.5 s not ready: prefill-0, decode-0"):
        running.start()


def test_a_gateway_without_nodes_is_not_ready(
    cluster: Callable[..., LocalCluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tandem.launch.ACQUAINTANCE_S", 0.2)
    with pytest.raises(ClusterError, match="knows no prefill or no decode node"):
        cluster(gateway_args=["--fake", "lonely"]).start()


def test_who_does_not_drain_is_killed_and_named(cluster: Callable[..., LocalCluster]) -> None:
    running = cluster(coordinator_args=["--fake", "stubborn"], drain_s=0.5)
    running.start()
    assert running.stop() == ["coordinator"]
    assert running.processes["coordinator"].exit_status == -signal.SIGKILL
    assert "coordinator ended (killed by SIGKILL)" in running.explain_death("coordinator")


def test_a_death_while_serving_is_seen(cluster: Callable[..., LocalCluster]) -> None:
    with cluster() as running:
        running.processes["decode-0"].send_signal(signal.SIGKILL)
        assert running.processes["decode-0"].wait(5)
        assert running.dead() == ["decode-0"]
        assert running.processes["prefill-0"].exit_status is None


def test_a_process_is_restarted_after_its_drain_or_its_death(
    cluster: Callable[..., LocalCluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_EVENTS", str(tmp_path / "events"))
    with cluster(num_gateways=2) as running:
        first = running.processes["decode-0"]
        running.restart("decode-0")
        assert first.exit_status == 0
        assert (tmp_path / "events").read_text().split() == ["decode-0"]
        running.kill("gateway-1")
        assert running.dead() == ["gateway-1"]
        assert running.processes["gateway"].exit_status is None
        running.restart("gateway-1")
        assert running.dead() == []
        assert running.processes["gateway-1"].address == running.gateway_addresses[1]
        assert str(first.pid) not in running.logs("decode-0")
    assert (running.run_dir / "decode-0.2.log").exists()


def test_a_restart_fails_where_the_drain_does(cluster: Callable[..., LocalCluster]) -> None:
    running = cluster(coordinator_args=["--fake", "stubborn"], drain_s=0.3)
    running.start()
    with pytest.raises(ClusterError, match=r"coordinator did not end within 0\.3 s"):
        running.restart("coordinator")
    running.stop()


def test_an_extra_node_joins(cluster: Callable[..., LocalCluster]) -> None:
    with cluster() as running:
        assert running.start_extra("decode") == "decode-1"
        assert running.start_extra("decode") == "decode-2"
        assert "--name decode-2" in " ".join(running.plans["decode-2"].flags)
        with pytest.raises(ValueError, match="none of prefill, decode"):
            running.start_extra("gateway")
    assert {p.exit_status for p in running.processes.values()} == {0}


def test_no_orphan_survives_a_killed_launcher(fake_processes: Path, tmp_path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from tandem import child_process
from tandem.launch import LocalCluster
child_process.PACKAGES_FOLDER = Path({str(fake_processes)!r})
cluster = LocalCluster(model="m", run_dir=Path({str(tmp_path)!r}))
cluster.start()
print(*(p.pid for p in cluster.processes.values()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    pids = [int(word) for word in done.stdout.split()]
    assert len(pids) == 4
    deadline = time.monotonic() + 5
    while any(is_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(is_alive(pid) for pid in pids)


def test_ports_are_free_or_refused(cluster: Callable[..., LocalCluster]) -> None:
    first, second = cluster(), cluster()
    addresses = {
        first.gateway_address, first.coordinator_address,
        second.gateway_address, second.coordinator_address,
    }  # fmt: skip
    assert len(addresses) == 4
    assert all(int(a.rsplit(":", 1)[1]) in FREE_PORTS for a in addresses)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} is taken"):
            cluster(gateway_port=port)
    for counts in ({"num_prefill": -1}, {"num_decode": 0}, {"num_gateways": 0}):
        with pytest.raises(ValueError, match="needs a decode node and a gateway"):
            cluster(**counts)


def make_plan(**changes: object) -> ClusterPlan:
    usual = {"model": "m", "run_dir": Path("/run/x"), "coordinator_port": 7300}
    usual |= {"dashboard_port": 7400}
    return ClusterPlan(**{**usual, "gateway_ports": [7301], "http_ports": [8000], **changes})  # type: ignore[arg-type]


def test_flags_of_each_process() -> None:
    plan = make_plan(
        gateway_ports=[7301, 7302], http_ports=[8000, 8001], num_prefill=2, num_decode=3,
        node_args=["--dtype", "float64"], gateway_args=["--a"], coordinator_args=["--b"],
    )  # fmt: skip
    plans = {process.name: process for process in plan.processes()}
    assert list(plans) == [
        *("prefill-0", "prefill-1", "decode-0", "decode-1", "decode-2"),
        *("gateway", "gateway-1", "coordinator"),
    ]
    assert plans["prefill-1"].module == "prefill_node"
    assert plans["decode-2"].module == "decode_node"
    assert " ".join(plans["decode-2"].flags) == (
        "--name decode-2 --host 127.0.0.1 --port 0 --model m --coordinator tcp://127.0.0.1:7300 "
        "--run-dir /run/x --memory-share 0.160 --dtype float64"
    )
    assert " ".join(plans["gateway-1"].flags) == (
        "--name gateway-1 --host 127.0.0.1 --port 7302 --http-port 8001 --model m "
        "--coordinator tcp://127.0.0.1:7300 --a"
    )
    assert " ".join(plans["coordinator"].flags) == (
        "--host 127.0.0.1 --port 7300 --dashboard-port 7400 --history /run/x/history.sqlite --b"
    )
    assert "--history" not in make_plan(dashboard_port=-1).coordinator().flags


def test_without_prefill_nodes_decode_nodes_serve_both_roles() -> None:
    plan = make_plan(num_prefill=0, num_decode=1)
    names = [process.name for process in plan.processes()]
    assert names == ["decode-0", "gateway", "coordinator"]
    weight = ("--prefill-weight", "1")
    assert set(weight) <= set(plan.processes()[0].flags)
    assert not any("weight" in flag for p in make_plan().processes() for flag in p.flags)
    assert "--prefill-weight" not in plan.node("prefill", 0).flags  # one that is started later


@pytest.mark.parametrize(
    ("num_nodes", "node_args"), [(2, []), (4, ["--num-pages=7"]), (6, ["--memory-share", "0.1"])]
)
def test_the_pool_is_left_to_nodes_that_know_its_size(num_nodes: int, node_args: list[str]) -> None:
    plan = make_plan(num_prefill=num_nodes // 2, num_decode=num_nodes // 2, node_args=node_args)
    shares = [f for f in plan.processes()[0].flags if f.startswith("--memory-share")]
    assert shares == [flag for flag in node_args if flag.startswith("--memory-share")]


def test_thread_pools_are_bounded_and_wait() -> None:
    env = child_environment({"PYTHONPATH": "/x", "HOME": "/h", "OMP_NUM_THREADS": "64"}, 3)
    pools = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    assert [env[name] for name in pools] == ["3"] * 4
    assert env["OMP_WAIT_POLICY"] == "PASSIVE" and env["TOKENIZERS_PARALLELISM"] == "false"
    assert env["HOME"] == "/h" and env["PYTHONPATH"] == f"{ROOT}{os.pathsep}/x"
