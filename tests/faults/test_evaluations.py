"""A prefill node dies with evaluations on it: all are answered, and right."""

import asyncio
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from node.fake_runner import fake_vector
from tandem.launch import LocalCluster
from tandem.status import query_status

NUM_INPUTS, NUM_TOKENS = 64, 256
NODE_ARGS = ("--device", "fake", "--fake-wedge-s", "60", "--max-num-batched-tokens", "512")


def embed(address: str, inputs: list[list[int]]) -> Any:
    answer = httpx.post(f"{address}/v1/embeddings", json={"input": inputs}, timeout=50)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def wait_for_work(cluster: LocalCluster, node_id: str) -> None:
    """Until a heartbeat says that the node computes, or it is a member no more."""
    while True:
        status = await query_status(cluster.coordinator_address)
        nodes = {node.node_id: node.load for node in status.nodes}
        load = nodes.get(node_id)
        if node_id not in nodes or (load is not None and load.has_work):
            return
        await asyncio.sleep(0.05)


@pytest.mark.timeout(90)
def test_a_killed_prefill_nodes_evaluations_are_computed_elsewhere(demo_model: Path) -> None:
    rng = np.random.default_rng(3)
    inputs = rng.integers(1, 4000, (NUM_INPUTS, NUM_TOKENS)).astype(np.int32)
    with (
        LocalCluster(model=str(demo_model), num_prefill=2, node_args=NODE_ARGS) as cluster,
        ThreadPoolExecutor(1) as pool,
    ):
        cluster.processes["prefill-0"].send_signal(signal.SIGUSR1)  # its first step will hang
        answer = pool.submit(embed, cluster.http_address, inputs.tolist())
        asyncio.run(asyncio.wait_for(wait_for_work(cluster, "prefill-0"), 30))
        cluster.kill("prefill-0")
        data = answer.result()["data"]
        status = asyncio.run(query_status(cluster.coordinator_address))
    assert {down.node_id for down in status.downs} == {"prefill-0"}
    assert {node.node_id for node in status.nodes} == {"prefill-1", "decode-0"}
    for each, ids in zip(data, inputs, strict=True):
        expected = fake_vector(ids)
        np.testing.assert_allclose(
            each["embedding"], expected / np.linalg.norm(expected), rtol=0, atol=1e-6
        )
