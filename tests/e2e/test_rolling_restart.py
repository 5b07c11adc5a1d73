"""Every process of a deployment replaced under load, one after the other: nobody notices.

Most of it runs on the fake device, whose answers are known in advance; once with the demo model.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from node.fake_runner import fake_token
from tandem.cli import main
from tandem.client import Client
from tandem.errors import TandemError
from tandem.launch import LocalCluster
from tandem.messages.membership import ClusterStatus
from tandem.model_folder import load_generation_defaults, load_model_config
from tandem.sampling import SamplingParams
from tandem.status import query_status

FAKE = ("--device", "fake", "--fake-step-s", "0.02", "--num-pages", "2000")
NUM_WORKERS = 6
NUM_TOKENS = 60
PARAMS = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)


class Load:
    """Threads that ask one question after the other until told to stop, and keep the answers."""

    def __init__(
        self, client: Client, prompts: Sequence[list[int]], params: SamplingParams = PARAMS
    ) -> None:
        self._client = client
        self._prompts = prompts
        self._params = params
        self._stop = threading.Event()
        self.answers: list[tuple[int, tuple[int, ...]]] = []
        self.errors: list[TandemError] = []
        self._threads = [threading.Thread(target=self._work, args=(n,)) for n in range(NUM_WORKERS)]

    def _work(self, number: int) -> None:
        for turn in range(10_000):
            if self._stop.is_set():
                return
            which = (number + turn * NUM_WORKERS) % len(self._prompts)
            prompt = self._prompts[which]
            try:
                (result,) = self._client.generate([prompt], params=self._params, progress=False)
            except TandemError as error:
                self.errors.append(error)
                return
            self.answers.append((which, result.token_ids))

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def wait_for_more(self, count: int) -> None:
        """Until so many further answers came."""
        wanted = len(self.answers) + count
        eventually(lambda: len(self.answers) >= wanted or bool(self.errors))


@contextmanager
def running(model: Path, **options: Any) -> Iterator[LocalCluster]:
    """A cluster whose every process ends well, the restarted ones included."""
    with LocalCluster(model=str(model), start_timeout_s=60, **options) as cluster:
        yield cluster
        assert cluster.stop() == []
        for name, process in cluster.processes.items():
            assert process.exit_status == 0, cluster.explain_death(name)


def eventually(is_true: Callable[[], bool], timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def status_of(cluster: LocalCluster) -> ClusterStatus:
    return asyncio.run(query_status(cluster.coordinator_address))


def drain(cluster: LocalCluster, name: str) -> None:
    """As an operator does it; the process ends by itself, and well."""
    assert main(["drain", name, "--wait", "--coordinator", cluster.coordinator_address]) == 0
    assert cluster.processes[name].wait(10), cluster.logs(name)[-2000:]
    assert cluster.processes[name].exit_status == 0, cluster.explain_death(name)


def has_joined(cluster: LocalCluster, num_nodes: int) -> Callable[[], bool]:
    """Whether so many nodes serve, none of which drains."""

    def check() -> bool:
        nodes = status_of(cluster).nodes
        return len(nodes) == num_nodes and not any(node.draining for node in nodes)

    return check


def fake_answer(prompt: list[int], vocab_size: int) -> tuple[int, ...]:
    history = list(prompt)
    for _ in range(NUM_TOKENS):
        history.append(fake_token(np.array(history, np.int32), vocab_size))
    return tuple(history[len(prompt) :])


def make_prompts(count: int) -> list[list[int]]:
    return [
        [(n * 7919 + i * 31) % 4000 for i in range(length)]
        for n, length in enumerate([5, 16, 33, 100, 190, 64] * (count // 6))
    ]


def assert_right(load: Load, expected: Sequence[tuple[int, ...]], at_least: int) -> None:
    assert load.errors == []
    assert len(load.answers) >= at_least
    wrong = [which for which, answer in load.answers if answer != expected[which]]
    assert wrong == []


@pytest.fixture(scope="module")
def known(demo_model: Path) -> tuple[list[list[int]], list[tuple[int, ...]]]:
    """Prompts and what the fake device answers to them."""
    prompts = make_prompts(24)
    vocab_size = load_model_config(demo_model).vocab_size
    return prompts, [fake_answer(prompt, vocab_size) for prompt in prompts]


@pytest.mark.timeout(120)
def test_every_node_leaves_and_comes_back(
    demo_model: Path, known: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, expected = known
    with (
        running(demo_model, num_prefill=2, num_decode=2, node_args=FAKE) as cluster,
        Client(cluster.gateway_address) as client,
        Load(client, prompts) as load,
    ):
        for name in ("prefill-0", "decode-0", "prefill-1", "decode-1"):
            drain(cluster, name)
            cluster.restart(name)
            eventually(has_joined(cluster, 4))
            load.wait_for_more(NUM_WORKERS // 2)
    assert "decode-1 has left" in capsys.readouterr().out
    assert_right(load, expected, 2 * NUM_WORKERS)


@pytest.mark.timeout(120)
def test_the_coordinator_is_killed_and_a_gateway_drained(demo_model: Path, known: Any) -> None:
    prompts, expected = known
    with (
        running(demo_model, num_gateways=2, node_args=FAKE) as cluster,
        Client(cluster.gateway_addresses[0]) as first,
        Client(cluster.gateway_addresses[1]) as second,
        Load(second, prompts) as steady,
    ):
        with Load(first, prompts) as leaving:
            steady.wait_for_more(1)
            cluster.kill("coordinator")
            steady.wait_for_more(1)  # streams in flight need no coordinator
            cluster.restart("coordinator")
            eventually(has_joined(cluster, 2))
            steady.wait_for_more(NUM_WORKERS)
        drain(cluster, "gateway")
        steady.wait_for_more(NUM_WORKERS)
    assert_right(leaving, expected, NUM_WORKERS)
    assert_right(steady, expected, 2 * NUM_WORKERS)


@pytest.mark.timeout(120)
def test_the_last_node_of_a_role_is_not_drained_unless_forced(
    demo_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(demo_model, node_args=FAKE) as cluster:
        arguments = ["drain", "decode-0", "--wait", "--coordinator", cluster.coordinator_address]
        assert main(arguments) == 1
        assert "decode-0 is the last" in capsys.readouterr().err
        assert main([*arguments, "--force"]) == 0
        assert cluster.processes["decode-0"].wait(10)
        assert cluster.processes["decode-0"].exit_status == 0


@pytest.mark.timeout(120)
def test_running_requests_move_with_the_demo_model(
    demo_model: Path, runner_of: Callable[..., Any], alone: Callable[..., list[int]]
) -> None:
    """A decode node leaves while all of its requests are far from their end."""
    prompts = make_prompts(6)
    params = SamplingParams(temperature=0.0, max_tokens=300, ignore_eos=True)
    eos = load_generation_defaults(demo_model).eos_token_ids
    runner = runner_of(demo_model)
    expected = {n: alone(runner, prompts[n], params, eos) for n in range(2)}
    node_args = ["--num-pages", "1200", "--max-num-batched-tokens", "128"]
    with (
        running(demo_model, num_decode=2, node_args=node_args) as cluster,
        Client(cluster.gateway_address) as client,
    ):
        streams = [client.submit(prompt_ids=prompts[n], params=params) for n in range(2)]
        begun = [[next(iter(stream)).token_ids] for stream in streams]
        assert all(begun)
        began = time.monotonic()
        drain(cluster, "decode-0")
        left_after_s = time.monotonic() - began
        results = [stream.finish() for stream in streams]
        took_s = time.monotonic() - began
    assert [list(result.token_ids) for result in results] == list(expected.values())
    assert left_after_s < took_s, "it left while its requests went on elsewhere"
    moved = [r for r in results if r.timeline.num_attempts > 1]
    assert moved and all(r.timeline.decode_node == "decode-1" for r in moved)
