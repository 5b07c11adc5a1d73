"""Other systems' bugs on real processes, numbered as in the list of the hand-off reference.

The device is the fake one: every answer is known in advance, and a token that came from stale or
foreign KV is another one.
"""

import asyncio
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scripts.fault_matrix.load import fake_answer
from tandem.client import Client, Stream
from tandem.errors import (
    ContextTooLongError,
    InvalidRequestError,
    TandemError,
    UnknownModelError,
)
from tandem.launch import LocalCluster
from tandem.messages.membership import ClusterStatus, NodeLoad, NodeStatus
from tandem.sampling import SamplingParams
from tandem.status import query_status

STEP_S = 0.03
WEDGE_S = 7.0
CONTEXT, NUM_PAGES = 512, 40
NODE_ARGS = (
    *("--device", "fake", "--fake-step-s", str(STEP_S), "--fake-wedge-s", str(WEDGE_S)),
    *("--num-pages", str(NUM_PAGES), "--max-model-len", str(CONTEXT)),
    *("--max-num-batched-tokens", "32", "--max-num-seqs", "16"),
)
LONG = SamplingParams(max_tokens=400)
TEMPLATE = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    "{% for m in messages %}{{ m.content }}{% endfor %}"
)
NOISE_S = 0.4  # between two clocks' views of one moment, on a busy machine


@contextmanager
def running(model: Path, *fixed: str) -> Iterator[LocalCluster]:
    """One prefill and one decode node; `fixed` ones come back on the same port."""
    cluster = LocalCluster(
        model=str(model),
        node_args=NODE_ARGS,
        coordinator_args=("--heartbeat-s", "0.05"),  # tests look at what nodes say of themselves
        start_timeout_s=60,
    )
    for name in fixed:
        keep_address(cluster, name)
    with cluster:
        yield cluster
        eventually(lambda: is_clean(status_of(cluster)))
        assert cluster.stop() == []
        for name, process in cluster.processes.items():
            assert process.exit_status == 0, cluster.explain_death(name)


@pytest.fixture(scope="module")
def cluster(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Its model has a chat template of its own."""
    model = tmp_path_factory.mktemp("regressions") / "demo"
    shutil.copytree(demo_model, model)
    (model / "chat_template.jinja").write_text(TEMPLATE)
    with running(model) as made:
        yield made


def keep_address(cluster: LocalCluster, name: str) -> None:
    """Its next process will listen where this one did."""
    plan = cluster.plans[name]
    taken = {cluster.coordinator_address, *cluster.gateway_addresses}
    port = next(p for p in range(19_100, 19_900) if f"tcp://127.0.0.1:{p}" not in taken)
    flags = list(plan.flags)
    flags[flags.index("--port") + 1] = str(port)
    cluster.plans[name] = replace(plan, flags=tuple(flags))


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    """After it nothing of any request is left."""
    with Client(cluster.gateway_address) as connected:
        connected.ping()
        yield connected
    eventually(lambda: is_clean(status_of(cluster)))


def status_of(cluster: LocalCluster) -> ClusterStatus:
    return asyncio.run(query_status(cluster.coordinator_address))


def node_of(cluster: LocalCluster, name: str) -> NodeStatus:
    return next(node for node in status_of(cluster).nodes if node.node_id == name)


def load_of(cluster: LocalCluster, name: str) -> NodeLoad:
    load = node_of(cluster, name).load
    assert load is not None
    return load


def is_clean(status: ClusterStatus) -> bool:
    loads = [(node.load, node.num_pages) for node in status.nodes]
    return (
        len(loads) == 2
        and status.num_live_requests == 0
        and all(
            load is not None
            and load.num_requests == 0
            and load.pages.free + load.pages.cached == num_pages
            for load, num_pages in loads
        )
    )


def eventually(is_true: Callable[[], Any], timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def prompt(n: int, length: int) -> list[int]:
    return [(n * 7919 + i * 31) % 4000 for i in range(length)]


def submit(client: Client, prompt_ids: list[int], num_tokens: int) -> Stream:
    params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    return client.submit(prompt_ids=prompt_ids, params=params)


def has_tokens(stream: Stream, count: int) -> Callable[[], bool]:
    return lambda: len(stream.received_ids) >= count


def is_exact(stream: Stream, prompt_ids: list[int], num_tokens: int) -> bool:
    return stream.finish().token_ids == fake_answer(tuple(prompt_ids), num_tokens)


@pytest.mark.timeout(90)
def test_regression_03_a_prefill_node_is_killed_around_a_transfer(demo_model: Path) -> None:
    """It comes back on the same address as another process; the decode node's pages are safe."""
    with running(demo_model, "prefill-0") as cluster, Client(cluster.gateway_address) as client:
        decode_pid = cluster.processes["decode-0"].pid
        for n, moment in enumerate(("before", "during", "after")):
            asked = prompt(n, 400)
            old = node_of(cluster, "prefill-0")
            stream = submit(client, asked, 60)
            if moment == "during":  # chunk by chunk, what is computed is shipped
                eventually(lambda: load_of(cluster, "decode-0").pages.filling)
            elif moment == "after":
                eventually(has_tokens(stream, 3))
            cluster.kill("prefill-0")
            cluster.restart("prefill-0")
            assert is_exact(stream, asked, 60), moment
            assert (stream.result.timeline.num_attempts > 1) == (moment != "after")
            new = node_of(cluster, "prefill-0")
            assert new.control_address == old.control_address and new.epoch > old.epoch
            assert is_exact(submit(client, asked, 10), asked, 10), moment
        assert cluster.processes["decode-0"].pid == decode_pid


def test_regression_09_what_cannot_run_is_a_clean_error_and_reaches_no_node(
    cluster: LocalCluster, client: Client
) -> None:
    num_steps = [load_of(cluster, name).num_steps for name in ("prefill-0", "decode-0")]
    cases: list[tuple[type[TandemError], str, dict[str, Any]]] = [
        (ContextTooLongError, "512", {"prompt_ids": prompt(1, CONTEXT)}),
        (ContextTooLongError, "512", {"prompt_ids": prompt(1, 50_000)}),
        (ContextTooLongError, "lower max_tokens", {"prompt_ids": prompt(1, 400), "params": LONG}),
        (UnknownModelError, "demo", {"prompt": "a", "model": "gpt-99"}),
        (InvalidRequestError, "no system turns", {"chat": [{"role": "system", "content": "x"}]}),
    ]
    for error, words, options in cases:
        with pytest.raises(error, match=words):
            client.submit(**options)
    assert is_clean(status_of(cluster))
    after = [load_of(cluster, name).num_steps for name in ("prefill-0", "decode-0")]
    assert after == num_steps
    chat = client.submit(
        chat=[{"role": "user", "content": "x"}], params=SamplingParams(max_tokens=3)
    )
    assert chat.finish().usage.num_output_tokens == 3


def measure(stream: Stream, began: float) -> tuple[float, float]:
    """Seconds to the first token and to the end, as the client sees them."""
    arrived = [time.monotonic() - began for _ in stream]
    return arrived[0], time.monotonic() - began


@pytest.mark.timeout(60)
def test_regression_22_the_timeline_is_what_the_client_measures_waits_included(
    cluster: LocalCluster, client: Client
) -> None:
    """The decode pool has no room for the second request before the first one ends."""
    first = submit(client, prompt(11, 440), 70)
    eventually(has_tokens(first, 2))
    began = time.monotonic()
    second = submit(client, prompt(12, 200), 20)
    ttft_s, total_s = measure(second, began)
    told, blocking = second.result.timeline, first.finish().timeline
    assert told.first_token_s is not None and told.finished_s is not None
    assert ttft_s == pytest.approx(told.first_token_s, abs=NOISE_S)
    assert total_s == pytest.approx(told.finished_s, abs=NOISE_S)
    # It waited for all of the first, and the timeline does not leave that out.
    assert blocking.finished_s is not None
    freed_s = blocking.received_unix_s + blocking.finished_s - told.received_unix_s
    assert freed_s > 2 * NOISE_S
    assert told.first_token_s > freed_s - STEP_S
    stages = (told.placed_s, told.prefill_start_s, told.first_token_s, told.finished_s)
    assert None not in stages and list(stages) == sorted(stages)  # type: ignore[type-var]
    assert told.transfer_end_s is not None and told.decode_start_s is not None
    assert told.transfer_end_s <= told.decode_start_s <= told.finished_s
    gaps_s = (told.finished_s - told.first_token_s) / 19
    assert gaps_s == pytest.approx((total_s - ttft_s) / 19, abs=NOISE_S / 19 * 2)


@pytest.mark.timeout(60)
def test_regression_22_an_attempt_is_no_request_in_any_count_or_latency(
    cluster: LocalCluster, client: Client
) -> None:
    """The decode node hangs, so the request is prefilled again; it is one request all the same."""
    num_ended = num_ended_of(cluster)
    asked = prompt(13, 60)
    began = time.monotonic()
    stream = submit(client, asked, 60)
    next(iter(stream))
    ttft_s = time.monotonic() - began
    eventually(has_tokens(stream, 10))
    cluster.processes["decode-0"].send_signal(signal.SIGUSR1)
    assert is_exact(stream, asked, 60)
    total_s = time.monotonic() - began
    told = stream.result.timeline
    assert told.num_attempts > 1 and total_s > 3.0
    assert told.first_token_s == pytest.approx(ttft_s, abs=NOISE_S)  # the first attempt's
    assert told.finished_s == pytest.approx(total_s, abs=NOISE_S)
    assert stream.result.usage.num_output_tokens == 60
    eventually(lambda: num_ended_of(cluster) > num_ended)
    eventually(lambda: is_clean(status_of(cluster)))
    assert num_ended_of(cluster) == num_ended + 1


def num_ended_of(cluster: LocalCluster) -> int:
    return sum(counts.num_ended for counts in status_of(cluster).classes)


@pytest.mark.timeout(60)
def test_regression_20_a_wedged_worker_is_seen_by_its_progress(
    cluster: LocalCluster, client: Client
) -> None:
    """It beats all the time; its step hangs. Users are told that nobody decodes."""
    asked = prompt(14, 60)
    stream = submit(client, asked, 60)
    eventually(has_tokens(stream, 3))
    assert client.ping().ready
    cluster.processes["decode-0"].send_signal(signal.SIGUSR1)
    hung_at = time.monotonic()
    eventually(lambda: not client.ping().ready)
    assert time.monotonic() - hung_at < WEDGE_S, "it was seen only when it was over"
    down = next(d for d in status_of(cluster).downs if d.node_id == "decode-0")
    assert "wedged" in down.reason and "its step has taken" in down.reason
    assert is_exact(stream, asked, 60)
    assert client.ping().ready
