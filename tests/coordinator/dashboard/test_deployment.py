"""A real deployment of fake nodes: what the dashboard shows of it, over a restart and a drain."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import msgspec
import pytest

from tandem.client import Client
from tandem.launch import LocalCluster
from tandem.messages.operations import RequestRecord, Snapshot
from tandem.sampling import SamplingParams

NUM_REQUESTS = 6
pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]


class Board:
    """Asks the dashboard of a cluster, also while its coordinator is away."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster

    def get(self, path: str) -> bytes:
        answer = httpx.get(f"{self.cluster.dashboard_address}{path}", verify=False, timeout=20)
        assert answer.status_code == 200, answer.text
        return answer.content

    def snapshot(self) -> Snapshot:
        return msgspec.json.decode(self.get("/api/snapshot"), type=Snapshot)

    def records(self) -> list[RequestRecord]:
        return msgspec.json.decode(self.get("/api/requests"), type=list[RequestRecord])

    def post(self, path: str, **body) -> dict:
        url = f"{self.cluster.dashboard_address}{path}"
        answer = httpx.post(url, json=body, verify=False, timeout=20)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def until(self, is_so: Callable[[Snapshot], bool]) -> Snapshot:
        """The first snapshot of which that is true."""
        deadline = time.monotonic() + 30
        while True:
            try:
                snapshot = self.snapshot()
            except httpx.TransportError:  # it restarts
                snapshot = None
            if snapshot is not None and is_so(snapshot):
                return snapshot
            assert time.monotonic() < deadline, snapshot
            time.sleep(0.05)


@dataclass
class Story:
    """A deployment that served a few requests, and whose coordinator was restarted then."""

    board: Board
    before: Snapshot
    records: list[RequestRecord]


@pytest.fixture(scope="module")
def story(repository: Path) -> Iterator[Story]:
    """One prefill and two decode nodes that compute nothing."""
    cluster = LocalCluster(
        model=str(repository / "models/demo"),
        num_decode=2,
        node_args=("--device", "fake", "--num-pages", "64"),
    )
    with cluster:
        with Client(cluster.gateway_address) as client:
            params = SamplingParams(max_tokens=8, ignore_eos=True)
            prompts = [[number, *range(1, 60)] for number in range(NUM_REQUESTS)]
            client.generate(prompts, params=params, progress=False)
        board = Board(cluster)
        before = board.until(
            lambda s: num_ended(s) == NUM_REQUESTS and s.num_live == 0 and len(s.nodes) == 3
        )
        records = board.records()
        cluster.restart("coordinator")
        yield Story(board, before, records)


def num_ended(snapshot: Snapshot) -> int:
    return sum(each.windows["3d"].num_ended for each in snapshot.classes)


def test_nodes_and_requests_are_shown(story: Story) -> None:
    roles = {node.node_id: (node.role, node.state) for node in story.before.nodes}
    assert roles == {
        "prefill-0": ("prefill", "ok"), "decode-0": ("decode", "ok"), "decode-1": ("decode", "ok"),
    }  # fmt: skip
    assert [gateway.gateway_id for gateway in story.before.gateways] == ["gateway"]
    assert len(story.records) == NUM_REQUESTS
    for record in story.records:
        assert (record.reason, record.num_output_tokens, record.num_prompt_tokens) == (
            "length", 8, 60,
        )  # fmt: skip
        assert record.timeline is not None and record.timeline.decode_start_s is not None
        assert record.ttft_target_ms == 2000.0 and record.max_itl_ms is not None
        assert record.steps[0].text.startswith("placed: prompt on prefill-0, tokens on decode-")
        assert record.steps[-1].text.startswith("ended after 8 tokens (length)")


def test_history_survives_a_restart_of_the_coordinator(story: Story) -> None:
    snapshot = story.board.until(lambda s: len(s.nodes) == 3 and len(s.gateways) == 1)
    assert snapshot.coordinator_incarnation > story.before.coordinator_incarnation
    assert num_ended(snapshot) == NUM_REQUESTS
    assert story.board.records() == story.records
    starts = [event for event in snapshot.events if "the coordinator starts" in event.text]
    assert len(starts) == 2 and starts[0].number < starts[1].number


def test_a_drain_through_the_api(story: Story) -> None:
    board = story.board
    board.until(lambda s: len(s.nodes) == 3)
    answer = board.post("/api/nodes/decode-1/drain")
    assert answer["accepted"] is True, answer
    snapshot = board.until(lambda s: {n.node_id for n in s.nodes} == {"prefill-0", "decode-0"})
    texts = [event.text for event in snapshot.events]
    assert any(text.startswith("node decode-1 drains") for text in texts)
    assert any("decode-1" in text and "said goodbye" in text for text in texts)
    assert board.cluster.processes["decode-1"].wait(20)
    assert board.cluster.processes["decode-1"].exit_status == 0
    refused = board.post("/api/nodes/decode-0/drain", force=False)
    assert refused["accepted"] is False and "the last node that serves" in refused["message"]
