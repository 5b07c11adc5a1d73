"""Scrapes of a whole deployment: all that boards and alerts ask for is there, and moves."""

import importlib
import json
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
from prometheus_client.parser import text_string_to_metric_families

from scripts.observability.files import generated
from tandem.launch import LocalCluster
from tandem.metrics import TABLE
from tandem.metrics_vllm import VLLM_TABLE

pytestmark = pytest.mark.timeout(90)  # the first test starts the deployment
NAME = re.compile(r"\b(?:tandem|process|vllm)[:_][a-z0-9_:]*[a-z0-9]")
SUFFIX = re.compile(r"_(bucket|sum|count)$")
PROMPT = list(range(100, 150))
# No first value before a node has learned its costs.
LATE = {"tandem_node_cost_model_error_ratio"}
HANDED_OVER = ("tandem_node_transfers_total", "prefill-0", "done", "prefill")
Scrape = dict[tuple[str, ...], float]


@pytest.fixture(scope="module")
def cluster(demo_model: Path) -> Iterator[LocalCluster]:
    with LocalCluster(
        model=str(demo_model),
        node_args=["--device", "fake", "--kv-events-port", "0"],
        gateway_args=["--vllm-metrics"],
        coordinator_args=["--vllm-metrics"],
        start_timeout_s=60,
    ) as running:
        yield running


def complete(cluster: LocalCluster, num_tokens: int) -> dict[str, Any]:
    asked = {"model": "demo", "prompt": PROMPT, "max_tokens": num_tokens, "ignore_eos": True}
    request = urllib.request.Request(
        f"{cluster.http_address}/v1/completions",
        json.dumps(asked).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def scrape(address: str | None) -> Scrape:
    """(sample's name, label values in the order of their names) -> value."""
    with urllib.request.urlopen(f"{address}/metrics", timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text = answer.read().decode()
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def until(find: Callable[[], Any]) -> Any:
    """What is found, once it is."""
    deadline = time.monotonic() + 20
    while not (found := find()):
        assert time.monotonic() < deadline, "it does not happen within 20 s"
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def scraped(cluster: LocalCluster) -> Scrape:
    """Both scrapes, after one request."""
    assert complete(cluster, 12)["usage"]["completion_tokens"] == 12

    def of_coordinator() -> Scrape | None:
        found = scrape(cluster.dashboard_address)
        outcomes = [n for key, n in found.items() if key[0] == "tandem_slo_requests_total"]
        is_ended = sum(outcomes) == 1  # in time or not, on a busy machine
        return found if is_ended and found[HANDED_OVER] == 1 else None

    return until(of_coordinator) | scrape(cluster.http_address)


def queries() -> list[str]:
    """All of boards and rules; what rules record is answered by rules."""
    found = [rule["expr"] for rule in rules()]
    for name, text in generated().items():
        if name.endswith(".json"):
            board = json.loads(text)
            targets = [each for panel in board["panels"] for each in panel.get("targets", ())]
            found += [target["expr"] for target in targets]
            found += [each["query"]["query"] for each in board["templating"]["list"][1:]]
    return found


def rules() -> list[dict[str, Any]]:
    text = generated()["deploy/prometheus/rules.yaml"]
    groups = importlib.import_module("yaml").safe_load(text)["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_every_name_in_a_scrape_is_in_the_table(scraped: Scrape) -> None:
    table = (*TABLE, *VLLM_TABLE)
    histograms = {metric.name for metric in table if metric.kind == "histogram"}
    known = {metric.name for metric in table} - histograms
    names = {key[0] for key in scraped}
    assert not {name for name in names - known if SUFFIX.sub("", name) not in histograms}


def test_every_metric_of_the_table_is_in_a_scrape(scraped: Scrape) -> None:
    names = {key[0] for key in scraped}
    found = names | {SUFFIX.sub("", name) for name in names}
    assert {metric.name for metric in (*TABLE, *VLLM_TABLE)} - found <= LATE


def test_every_metric_asked_for_is_scraped_or_recorded(scraped: Scrape) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    asked = {name for query in queries() for name in NAME.findall(query)}
    assert len(asked) > 40
    assert asked - recorded - {key[0] for key in scraped} <= LATE


def test_one_request_shows_everywhere(scraped: Scrape) -> None:
    assert scraped["tandem_prompt_tokens_total", "standard"] == len(PROMPT)
    assert scraped["tandem_output_tokens_total", "standard"] == 12
    assert scraped["tandem_gateway_output_tokens_total",] == 12
    assert scraped["tandem_http_requests_total", "POST", "/v1/completions", "200"] == 1
    assert scraped["vllm:generation_tokens_total", "all", "demo"] == 12
    assert scraped["vllm:request_success_total", "gateway", "length", "demo"] == 1
    for stage in ("ttft", "tpot", "e2e", "queue", "prefill", "transfer", "decode_admission"):
        assert scraped[f"tandem_request_{stage}_seconds_count", "standard"] == 1, stage
    assert scraped["tandem_node_transfer_bytes_total", "prefill-0", "prefill"] > 0


def test_cached_pages_are_published(cluster: LocalCluster, scraped: Scrape) -> None:
    address = re.search(r"KV events at (tcp://\S+), topic", cluster.logs("prefill-0"))
    assert address is not None
    with zmq.Context() as context, context.socket(zmq.SUB) as subscriber:
        subscriber.set(zmq.LINGER, 0)
        subscriber.connect(address[1])
        subscriber.subscribe(b"kv@prefill-0@")

        def stored() -> list[int] | None:
            PROMPT[0] += 1  # another prefix each time, until the subscription is in force
            complete(cluster, 2)
            while subscriber.poll(500):
                _, _, payload = subscriber.recv_multipart()
                for name, *fields in msgpack.unpackb(payload)[1]:
                    if name == "BlockStored":
                        assert fields[3] == 16, "tokens per page"
                        return list(fields[0])
            return None

        assert until(stored)
