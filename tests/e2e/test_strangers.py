"""Peers without keys on every socket (regression 21), and tenants who share a prompt and nothing
else."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scripts.fault_matrix.load import fake_answer
from tandem.client import Client
from tandem.keys import KeyFolder, Keyring
from tandem.launch import LocalCluster
from tandem.messages.membership import ClusterStatus
from tandem.sampling import SamplingParams
from tandem.status import query_status
from tests.e2e.strangers import Strangers, make_bomb, memory_of

NODE_ARGS = ("--device", "fake", "--fake-step-s", "0.01", "--num-pages", "256")
PROMPT = [(7 * i) % 4000 for i in range(100)]
PAGE = 16
MAX_GROWTH = 20 << 20  # less than one of the frames that are too long
TENANTS = """
[tenants.red]
clients = ["alice", "amy"]
[tenants.blue]
clients = ["bob"]
"""


@pytest.fixture(scope="module")
def secure(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """With keys, and tenants by key."""
    folder = tmp_path_factory.mktemp("secure")
    tenants = folder / "tenants.toml"
    tenants.write_text(TENANTS)
    cluster = LocalCluster(
        model=str(demo_model),
        node_args=NODE_ARGS,
        gateway_args=("--tenants", str(tenants)),
        run_dir=folder / "run",
        secure=True,
        start_timeout_s=60,
    )
    assert cluster.keys is not None
    KeyFolder.complete(cluster.keys, [("client", name) for name in ("alice", "amy", "bob")])
    with cluster:
        yield cluster


@pytest.fixture(scope="module")
def plain(demo_model: Path) -> Iterator[LocalCluster]:
    """Without keys, on loopback."""
    with LocalCluster(model=str(demo_model), node_args=NODE_ARGS, start_timeout_s=60) as cluster:
        yield cluster


def status_of(cluster: LocalCluster) -> ClusterStatus:
    keys = None if cluster.keys is None else Keyring(cluster.keys, "operator")
    return asyncio.run(query_status(cluster.coordinator_address, keys))


@contextmanager
def attacked(cluster: LocalCluster, folder: Path) -> Iterator[Strangers]:
    """A stream goes on meanwhile; nothing is loaded, nobody ends or grows."""
    bomb, marker = make_bomb(folder)
    pids = {name: process.pid for name, process in cluster.processes.items()}
    before = {name: memory_of(pid) for name, pid in pids.items()}
    params = SamplingParams(max_tokens=150, ignore_eos=True)
    with Client(cluster.gateway_address, keys=cluster.keys, key_name=cluster.key_name) as client:
        stream = client.submit(prompt_ids=PROMPT, params=params)
        with Strangers(list(pids.values()), bomb) as strangers:
            # Control sockets of four processes, and both nodes' bulk sockets and doors.
            assert len(strangers.ports) >= 6 and len(strangers.unix) >= 2
            yield strangers
        answer = fake_answer(tuple(PROMPT), 150)
        assert stream.finish().token_ids == answer
        assert client.submit(prompt_ids=PROMPT, params=params).finish().token_ids == answer
    assert not marker.exists()
    assert cluster.dead() == []
    grown = {name: memory_of(pid) - before[name] for name, pid in pids.items()}
    assert max(grown.values()) < MAX_GROWTH, grown
    assert {node.node_id for node in status_of(cluster).nodes} == {"prefill-0", "decode-0"}


@pytest.mark.timeout(60)
def test_regression_21_peers_without_a_key_are_heard_by_nobody(
    secure: LocalCluster, tmp_path: Path
) -> None:
    """Dropped before any decoding: the counts of what could not be read stay at zero."""
    assert secure.keys is not None
    keys = KeyFolder(secure.keys)
    servers = [keys.public(*owner).current for owner in keys.owners() if owner[0] != "client"]
    with attacked(secure, tmp_path) as strangers:
        strangers.shout()
        assert strangers.talk() == 0
        assert strangers.talk(servers) == 0
    assert status_of(secure).num_dropped_messages == 0
    with Client(secure.gateway_address, keys=secure.keys, key_name="local") as client:
        assert client.ping().ready


@pytest.mark.timeout(60)
def test_regression_21_without_keys_what_is_no_message_is_dropped_and_counted(
    plain: LocalCluster, tmp_path: Path
) -> None:
    with attacked(plain, tmp_path) as strangers:
        strangers.shout()
        assert strangers.talk() >= 2  # that a gateway and a coordinator answer pings and questions
    assert status_of(plain).num_dropped_messages >= 3


def test_a_prompt_is_a_hit_for_its_tenant_and_none_for_another(secure: LocalCluster) -> None:
    """As their usage tells them: the tenant is in the page hashes, by the key that asks."""
    prompt = [(11 * i) % 4000 for i in range(100)]
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    told = []
    for name in ("alice", "bob", "alice", "amy", "bob", "local"):
        with Client(secure.gateway_address, keys=secure.keys, key_name=name) as client:
            result = client.submit(prompt_ids=prompt, params=params).finish()
        assert result.token_ids == fake_answer(tuple(prompt), 20)
        told.append(result.usage.num_cached_tokens)
    full = len(prompt) // PAGE * PAGE
    assert told == [0, 0, full, full, full, 0]
