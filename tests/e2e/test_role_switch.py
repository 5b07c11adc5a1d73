"""Nodes of a running deployment turn from one role to the other under load.

Measured on two cores: the first request that a turned node serves ends within 0.3 s of the order.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from node.fake_runner import fake_token
from tandem.cli import main
from tandem.client import Client
from tandem.errors import TandemError
from tandem.launch import LocalCluster
from tandem.messages.membership import ClusterStatus, NodeStatus
from tandem.model_folder import load_model_config
from tandem.sampling import SamplingParams
from tandem.status import query_status

FAKE = ["--device", "fake", "--fake-costs", "0.002:0.00005:0:0.0001:0", "--num-pages", "400"]
NUM_TOKENS = 24
PARAMS = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
NUM_WORKERS = 4
SWITCH_S = 1.0
PROMPTS = [[(n * 7919 + i * 31) % 4000 for i in range(70 + 9 * n)] for n in range(12)]


def status_of(cluster: LocalCluster) -> ClusterStatus:
    return asyncio.run(query_status(cluster.coordinator_address))


def node_of(cluster: LocalCluster, name: str) -> NodeStatus:
    return next(n for n in status_of(cluster).nodes if n.node_id == name)


def turn(cluster: LocalCluster, name: str, prefill: float, decode: float) -> int:
    flags = ["--prefill", str(prefill), "--decode", str(decode)]
    return main(["weights", name, *flags, "--coordinator", cluster.coordinator_address])


def eventually(is_true: Callable[[], bool], timeout_s: float = 15.0) -> float:
    """How long it took."""
    began = time.monotonic()
    while not is_true():
        assert time.monotonic() < began + timeout_s
        time.sleep(0.02)
    return time.monotonic() - began


def answer_to(prompt: list[int], vocab_size: int) -> tuple[int, ...]:
    history = list(prompt)
    for _ in range(NUM_TOKENS):
        history.append(fake_token(np.array(history, np.int32), vocab_size))
    return tuple(history[len(prompt) :])


class Load:
    """Requests one after the other on some threads; every answer is checked."""

    def __init__(self, client: Client, expected: list[tuple[int, ...]]) -> None:
        self._client = client
        self._expected = expected
        self._stop = threading.Event()
        self.results: list[Any] = []
        self.errors: list[object] = []
        self._threads = [threading.Thread(target=self._work, args=(n,)) for n in range(NUM_WORKERS)]

    def _work(self, number: int) -> None:
        which = number
        while not self._stop.is_set():
            which = (which + NUM_WORKERS) % len(PROMPTS)
            try:
                (result,) = self._client.generate([PROMPTS[which]], params=PARAMS, progress=False)
            except TandemError as error:
                self.errors.append(error)
                return
            if result.token_ids != self._expected[which]:
                self.errors.append((which, result))
            self.results.append(result)

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def has_served(self, name: str, role: str, since: int) -> bool:
        """Whether a result after the first `since` names the node in that role."""
        assert self.errors == []
        return any(getattr(r.timeline, f"{role}_node") == name for r in self.results[since:])


@pytest.fixture(scope="module")
def cluster(demo_model: Path) -> Iterator[LocalCluster]:
    with LocalCluster(
        model=str(demo_model),
        num_prefill=2,
        num_decode=2,
        node_args=FAKE,
        coordinator_args=["--balance", "off"],
        start_timeout_s=60,
    ) as running:
        yield running
        assert running.stop() == []


@pytest.fixture(scope="module")
def expected(demo_model: Path) -> list[tuple[int, ...]]:
    vocab_size = load_model_config(demo_model).vocab_size
    return [answer_to(prompt, vocab_size) for prompt in PROMPTS]


@pytest.mark.timeout(90)
def test_regression_17_roles_flip_under_load(
    cluster: LocalCluster, expected: list[tuple[int, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    """No request fails, the new roles serve at once, and prefix caches stay."""
    took_s: list[float] = []
    with Client(cluster.gateway_address) as client, Load(client, expected) as load:
        eventually(lambda: len(load.results) >= 2 * NUM_WORKERS)
        for name, weights, role in (
            ("decode-1", (1, 0), "prefill"),
            ("prefill-1", (0, 1), "decode"),
            ("decode-1", (0, 1), "decode"),
            ("prefill-1", (1, 0), "prefill"),
        ):
            before = len(load.results)
            eventually(lambda n=name: node_of(cluster, n).num_cached_prefixes > 0)  # type: ignore[misc]
            assert turn(cluster, name, *weights) == 0
            took_s.append(
                eventually(lambda b=before, n=name, r=role: load.has_served(n, r, b))  # type: ignore[misc]
            )
            assert node_of(cluster, name).num_cached_prefixes > 0
    assert load.errors == []
    assert max(took_s) < 5 * SWITCH_S, took_s
    print(f"served in the new role after {', '.join(f'{s:.2f}' for s in took_s)} s")
    assert "turns from decode to prefill" in capsys.readouterr().out


@pytest.mark.timeout(60)
def test_the_last_node_of_a_role_keeps_it(
    cluster: LocalCluster, expected: list[tuple[int, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert turn(cluster, "decode-0", 1, 0) == 0
    assert turn(cluster, "decode-1", 1, 0) == 1
    assert "decode-1 is the last healthy node that serves decode" in capsys.readouterr().err
    with Client(cluster.gateway_address) as client:
        (result,) = client.generate([PROMPTS[0]], params=PARAMS, progress=False)
    assert result.token_ids == expected[0]
    assert result.timeline.decode_node == "decode-1"
    assert turn(cluster, "decode-0", 0, 1) == 0
