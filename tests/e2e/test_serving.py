"""One deployment, what its users see: text, timelines, cancels, logprobs, errors, status."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tandem.errors import (
    ContextTooLongError,
    InvalidRequestError,
    TandemError,
    UnknownModelError,
    UnknownSlaClassError,
)
from tandem.sampling import SamplingParams

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def deployment(deployer: Callable[..., Any], demo_model: Path) -> Iterator[Any]:
    with deployer(demo_model, node_args=["--max-model-len", "1024"]) as running:
        yield running


@pytest.mark.timeout(90)
def test_text_streams_and_the_timeline_is_in_order(deployment: Any) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
    stream = deployment.client.submit("def add(a, b):\n", params=params)
    chunks = [chunk.text for chunk in stream]
    result = stream.result
    assert "".join(chunks) == result.text
    assert len(chunks) > 3
    assert len(result.token_ids) == 40 == result.usage.num_output_tokens
    assert result.finish_reason == "length"
    t = result.timeline
    stages = [
        0.0,
        t.placed_s,
        t.prefill_start_s,
        t.first_token_s,
        t.transfer_end_s,
        t.decode_start_s,
        t.finished_s,
    ]
    assert None not in stages
    assert t.placed_s <= t.prefill_start_s <= t.first_token_s <= t.finished_s
    assert t.transfer_end_s <= t.decode_start_s <= t.finished_s
    assert (t.prefill_node, t.decode_node) == ("prefill-0", "decode-0")
    assert t.transfer_bytes > 0


def test_logprobs_come_with_every_token(deployment: Any) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=8, logprobs=3, ignore_eos=True)
    (result,) = deployment.client.generate(["import os\n"], params=params, progress=False)
    assert len(result.logprobs) == len(result.token_ids) == 8
    for token_id, logprobs in zip(result.token_ids, result.logprobs, strict=True):
        assert logprobs.top[0] == (token_id, logprobs.logprob)
        assert len(logprobs.top) == 3
        assert logprobs.logprob <= 0


def test_stop_string_cuts_the_text_and_ends_the_request(deployment: Any) -> None:
    plain = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True)
    (whole,) = deployment.client.generate(["class A:\n"], params=plain, progress=False)
    stop = whole.text[12:15]
    params = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True, stop=(stop,))
    (cut,) = deployment.client.generate(["class A:\n"], params=params, progress=False)
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.stop_string == stop
    assert cut.finish_reason == "stop"


@pytest.mark.parametrize("num_chunks", [0, 1, 5])
def test_cancel_ends_the_request_and_frees_both_nodes(deployment: Any, num_chunks: int) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=900, ignore_eos=True)
    stream = deployment.client.submit("def f():\n", params=params)
    iterator = iter(stream)
    for _ in range(num_chunks):
        next(iterator)
    stream.cancel()
    assert len(list(iterator)) < 900
    wait_until_idle(deployment)


def wait_until_idle(deployment: Any) -> None:
    """All pages free or cached within a bounded time."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        nodes = deployment.status().nodes
        if all(
            n.load.num_requests == 0 and n.load.pages.free + n.load.pages.cached == n.num_pages
            for n in nodes
        ):
            return
        time.sleep(0.1)
    pytest.fail(f"not idle: {[n.load for n in deployment.status().nodes]}")


def test_a_repeated_prompt_hits_the_prefix_cache(deployment: Any) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=4)
    prompt = "x = [1, 2, 3]\n" * 20
    first, second = (
        deployment.client.generate([prompt], params=params, progress=False)[0] for _ in range(2)
    )
    assert first.token_ids == second.token_ids
    assert first.usage.num_cached_tokens == 0
    assert second.usage.num_cached_tokens >= 16


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"prompt": "a " * 5000}, ContextTooLongError, "1024"),
        ({"prompt": ""}, InvalidRequestError, "empty"),
        ({"prompt": "a", "sla_class": "gold"}, UnknownSlaClassError, "interactive"),
        ({"prompt": "a", "model": "gpt-99"}, UnknownModelError, "demo"),
        (
            {"prompt": "a", "params": SamplingParams(temperature=-1.0)},
            InvalidRequestError,
            "temperature",
        ),
        ({"prompt_ids": [4_000_000]}, InvalidRequestError, "4000000"),
    ],
)
def test_clear_errors(
    deployment: Any, options: dict[str, Any], error: type[TandemError], words: str
) -> None:
    with pytest.raises(error, match=words):
        list(deployment.client.submit(options.pop("prompt", None), **options))
    (result,) = deployment.client.generate(
        ["ok"], params=SamplingParams(max_tokens=2), progress=False
    )
    assert result.finish_reason in ("stop", "length")


def test_status_counts_requests_by_class(deployment: Any) -> None:
    deployment.client.generate(["a", "b"], sla_class="batch", progress=False)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        status = deployment.status()
        counts = {c.targets.sla_class: c for c in status.classes}
        if counts["batch"].num_ended >= 2:
            break
        time.sleep(0.05)
    assert counts["batch"].num_ended == 2
    assert counts["batch"].num_attained == 2
    assert {n.node_id for n in status.nodes} == {"prefill-0", "decode-0"}
    assert status.num_dropped_messages == 0


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["raw_client", "zmq_client", "async_client"])
def test_examples_run(deployment: Any, name: str) -> None:
    prompt = "def add(a, b):"
    flags = [prompt] if name == "raw_client" else []
    program = [sys.executable, EXAMPLES / f"{name}.py", deployment.cluster.gateway_address, *flags]
    done = subprocess.run(program, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    if name == "raw_client":
        params = SamplingParams(temperature=0.0, max_tokens=40)
        (answer,) = deployment.client.generate([prompt], params=params)
        assert done.stdout == answer.text
    else:
        assert len(done.stdout) > 60
