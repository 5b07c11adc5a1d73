"""A deployment with keys, end to end: the same tokens, encrypted, through rotations; no others."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tandem.client import Client
from tandem.errors import GatewayUnreachableError, UnavailableError
from tandem.keys import KeyFolder, Keyring
from tandem.launch import LocalCluster
from tandem.sampling import SamplingParams
from tandem.status import query_status

FAKE = ["--device", "fake", "--fake-step-s", "0.005", "--num-pages", "256", "--transport", "zmq"]
LONG = SamplingParams(max_tokens=600, ignore_eos=True)


@pytest.fixture(scope="module")
def cluster(demo_model: Path) -> Iterator[LocalCluster]:
    """Pages travel over encrypted sockets as well."""
    with LocalCluster(
        model=str(demo_model), node_args=FAKE, secure=True, start_timeout_s=60
    ) as running:
        yield running


def test_all_roles_serve_with_keys_and_rotation_costs_no_token(cluster: LocalCluster) -> None:
    """The keys of every process and of the client change while a stream runs."""
    keys = KeyFolder(cluster.keys or Path())
    with Client(cluster.gateway_address, keys=cluster.keys, key_name="local") as client:
        wanted = client.submit("def f(n):", params=LONG).finish().token_ids
        stream = client.submit("def f(n):", params=LONG)
        ids, rotated = [], []
        for chunk in stream:
            ids += chunk.token_ids
            if len(ids) > 100 and not rotated:
                rotated = [owner for owner in keys.owners() if owner[0] != "operator"]
                for owner in rotated:
                    keys.rotate(*owner)
        assert tuple(ids) == wanted and len(wanted) == 600
        assert {kind for kind, _ in rotated} == {"coordinator", "gateway", "node", "client"}
        assert client.submit("def f(n):", params=LONG).finish().token_ids == wanted


def test_operators_need_their_key(cluster: LocalCluster) -> None:
    operator = Keyring(cluster.keys or Path(), "operator")
    status = asyncio.run(query_status(cluster.coordinator_address, operator))
    assert {node.node_id for node in status.nodes} == {"prefill-0", "decode-0"}
    with pytest.raises(UnavailableError, match="requires keys: pass --keys"):
        asyncio.run(query_status(cluster.coordinator_address))


def test_a_client_without_keys_is_told_so_soon(cluster: LocalCluster) -> None:
    started = time.monotonic()
    with (
        Client(cluster.gateway_address) as client,
        pytest.raises(GatewayUnreachableError, match="requires keys: pass --keys"),
    ):
        client.ping()
    assert time.monotonic() - started < 5
