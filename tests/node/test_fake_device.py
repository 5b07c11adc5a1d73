"""`--device fake` in whole processes: quick start, no torch, known answers, a wedge on demand."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from node.fake_runner import fake_token
from tandem.client import Client
from tandem.launch import LocalCluster
from tandem.model_folder import load_model_config
from tandem.sampling import SamplingParams

PARAMS = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
WEDGE_S = 1.0


@pytest.fixture(scope="module")
def cluster(demo_model: Path) -> Iterator[LocalCluster]:
    node_args = ["--device", "fake", "--fake-wedge-s", str(WEDGE_S)]
    with LocalCluster(model=str(demo_model), node_args=node_args) as running:
        yield running


def expected(prompt: list[int], num_tokens: int, vocab_size: int) -> tuple[int, ...]:
    history = list(prompt)
    for _ in range(num_tokens):
        history.append(fake_token(np.array(history, np.int32), vocab_size))
    return tuple(history[len(prompt) :])


def test_nodes_start_at_once_and_load_no_torch(cluster: LocalCluster) -> None:
    nodes = {name: p for name, p in cluster.processes.items() if name.endswith("-0")}
    assert len(nodes) == 2
    for name, process in nodes.items():
        assert "torch" not in Path(f"/proc/{process.pid}/maps").read_text(), name
        line = next(li for li in cluster.logs(name).splitlines() if "start-up in all" in li)
        assert float(line.split()[-2]) < 1.0


def test_answers_are_known_and_a_wedge_only_delays_them(
    cluster: LocalCluster, demo_model: Path
) -> None:
    prompt = list(range(100, 140))
    wanted = expected(prompt, 12, load_model_config(demo_model).vocab_size)
    with Client(cluster.gateway_address) as client:
        assert client.generate([prompt], params=PARAMS)[0].token_ids == wanted
        began = time.monotonic()
        cluster.processes["decode-0"].send_signal(signal.SIGUSR1)
        assert client.generate([prompt], params=PARAMS)[0].token_ids == wanted
        assert time.monotonic() - began >= WEDGE_S
        assert client.generate([prompt], params=PARAMS)[0].token_ids == wanted
    assert cluster.dead() == []
