"""Embeddings, scores, rankings and echoed logprobs over HTTP, against transformers."""

import asyncio
import base64
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from tandem.launch import LocalCluster
from tandem.messages.membership import NodeStatus
from tandem.status import query_status

TEXTS = [
    "def add(a, b):\n    return a + b\n",
    "The quick brown fox jumps over the lazy dog.",
    "import os\nimport sys\n",
    "x",
    "class Stack:\n    def push(self, item):\n        self.items.append(item)\n" * 8,
]
pytestmark = pytest.mark.timeout(120)  # the first one waits for the deployment
CONTEXT = 1024
NODE_ARGS = ("--max-model-len", str(CONTEXT), "--max-num-batched-tokens", "96")


@pytest.fixture(scope="module")
def cluster(demo_model: Path) -> Iterator[LocalCluster]:
    running = LocalCluster(model=str(demo_model), node_args=NODE_ARGS, start_timeout_s=60)
    with running:
        yield running
        assert_nothing_left(running)
    assert running.stop() == []
    for name, process in running.processes.items():
        assert process.exit_status == 0, running.explain_death(name)


def nodes_of(cluster: LocalCluster) -> dict[str, NodeStatus]:
    status = asyncio.run(query_status(cluster.coordinator_address))
    return {node.node_id: node for node in status.nodes}


def assert_nothing_left(cluster: LocalCluster) -> None:
    """Every page is free or cached again; heartbeats tell within a second or so."""
    deadline = time.monotonic() + 20
    while True:
        loads = {name: (node.num_pages, node.load) for name, node in nodes_of(cluster).items()}
        if all(
            load is not None
            and load.num_requests == 0
            and load.pages.free + load.pages.cached == num_pages
            for num_pages, load in loads.values()
        ):
            return
        assert time.monotonic() < deadline, loads
        time.sleep(0.1)


@pytest.fixture(scope="module")
def post(cluster: LocalCluster) -> Iterator[Callable[..., Any]]:
    """Posts JSON, and gives the answer's; a connection for each, so that none is left."""
    limits = httpx.Limits(max_keepalive_connections=0)
    address = cluster.http_address
    with httpx.Client(base_url=address, timeout=60, limits=limits) as client:

        def ask(path: str, *, status: int = 200, **body: Any) -> Any:
            response = client.post(path, json=body)
            assert response.status_code == status, response.text
            return response.json()

        yield ask


class Oracle:
    """transformers over the same folder, in float32."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32
        ).eval()

    def run(self, ids: list[int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Hidden states and log-probabilities of every position."""
        with torch.inference_mode():
            output = self._model(torch.tensor([ids]), output_hidden_states=True)
        logprobs = torch.log_softmax(output.logits[0], -1)
        return output.hidden_states[-1][0].numpy(), logprobs.numpy()


@pytest.fixture(scope="module")
def oracle(demo_model: Path) -> Oracle:
    return Oracle(demo_model)


def unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    return vector / np.linalg.norm(vector)


def test_embeddings_are_transformers_and_touch_no_decode_node(
    cluster: LocalCluster, post: Callable[..., Any], oracle: Oracle
) -> None:
    answer = post("/v1/embeddings", input=TEXTS, model="demo")
    encoded = [oracle.tokenizer.encode(text) for text in TEXTS]
    states = [oracle.run(ids)[0] for ids in encoded]
    assert [each["index"] for each in answer["data"]] == [0, 1, 2, 3, 4]
    for each, expected in zip(answer["data"], states, strict=True):
        np.testing.assert_allclose(each["embedding"], unit(expected[-1]), rtol=0, atol=1e-5)
    num_tokens = sum(map(len, encoded))
    assert answer["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    means = post("/v1/embeddings", input=encoded, pooling="mean", normalize=False, dimensions=7)
    for each, expected in zip(means["data"], states, strict=True):
        np.testing.assert_allclose(each["embedding"], expected.mean(0)[:7], rtol=0, atol=5e-5)
    again = post("/v1/embeddings", input=TEXTS[4], encoding_format="base64")
    packed = np.frombuffer(base64.b64decode(again["data"][0]["embedding"]), "<f4")
    assert packed.tolist() == [np.float32(x) for x in answer["data"][4]["embedding"]]
    decode = nodes_of(cluster)["decode-0"]
    assert decode.load is not None
    assert decode.load.num_steps == 0
    assert decode.load.pages.free == decode.num_pages


def test_scores_are_likelihoods(post: Callable[..., Any], oracle: Oracle) -> None:
    firsts = ["def add(a, b):\n    return", "import"]
    answer = post("/v1/score", text_1=firsts, text_2=[" a + b\n", " os\n"])
    for each, first, second in zip(answer["data"], firsts, [" a + b\n", " os\n"], strict=True):
        one = oracle.tokenizer.encode(first)
        two = oracle.tokenizer.encode(second, add_special_tokens=False)
        logprobs = oracle.run([*one, *two])[1]
        expected = [logprobs[len(one) - 1 + i, token] for i, token in enumerate(two)]
        assert each["num_tokens"] == len(two)
        assert each["sum_logprob"] == pytest.approx(sum(expected), abs=1e-3)
        assert each["score"] == pytest.approx(np.mean(expected), abs=1e-4)


def test_the_document_that_a_query_continues_ranks_first(post: Callable[..., Any]) -> None:
    documents: list[Any] = [
        "The weather in spring is mild, with some rain.",
        {"text": "def fibonacci(number):\n    if number < 2:\n        return number"},
        "Once upon a time there was a king who had three sons.",
    ]
    query = "return fibonacci(number - 1) + fibonacci(number - 2)"
    asked: dict[str, Any] = {"query": query, "documents": documents}
    answers = [post(path, **asked) for path in ("/v1/rerank", "/rerank")]
    results = answers[0]["results"]
    assert results == answers[1]["results"], "bit for bit, whatever shared the steps"
    assert results[0]["index"] == 1
    assert results[0]["document"] == documents[1]
    scores = [each["relevance_score"] for each in results]
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score < 1 for score in scores)
    best = post("/v1/rerank", **asked, top_n=1, return_documents=False)["results"]
    assert best == [{"index": 1, "relevance_score": scores[0]}]


def test_echoed_logprobs_are_those_of_teacher_forcing(
    post: Callable[..., Any], oracle: Oracle
) -> None:
    ids = oracle.tokenizer.encode(TEXTS[0])
    body = {"prompt": ids, "echo": True, "logprobs": 3, "temperature": 0, "ignore_eos": True}
    [choice] = post("/v1/completions", **body, max_tokens=2)["choices"]
    shown = choice["logprobs"]["token_logprobs"]
    assert shown[0] is None
    logprobs = oracle.run(ids)[1]
    expected = [logprobs[at - 1, ids[at]] for at in range(1, len(ids))]
    np.testing.assert_allclose(shown[1 : len(ids)], expected, rtol=0, atol=1e-4)
    assert len(shown) == len(ids) + 2
    assert all(len(top) >= 3 for top in choice["logprobs"]["top_logprobs"][1:])
    [bare] = post("/v1/completions", **body, max_tokens=0)["choices"]
    assert bare["logprobs"]["token_logprobs"] == shown[: len(ids)]


def test_what_cannot_be_done_is_told(post: Callable[..., Any]) -> None:
    long = {"input": [list(range(2000)), [1, 2]]}
    assert "context" in post("/v1/embeddings", **long, status=400)["error"]["message"]
    for body in (
        {"input": []},
        {"input": [1, "a"]},
        {"input": ["a", ""]},
        {"input": [-1]},
        {"input": [[1], [10**9]]},
        {"input": "a", "dimensions": 10**6},
        {"input": "a", "truncate_prompt_tokens": 5},
        {"input": "a", "encoding_format": "hex"},
        {"input": "a", "sla_class": "none such"},
    ):
        post("/v1/embeddings", **body, status=400)
    post("/v1/embeddings", input="a", model="gpt-4", status=404)
    post("/v1/score", text_1=["a", "b"], text_2=["a", "b", "c"], status=400)
    post("/v1/rerank", query="", documents=[], status=400)


def test_an_embedding_does_not_depend_on_those_beside_it(post: Callable[..., Any]) -> None:
    inputs = [[i, i + 1, i + 2, i + 3] for i in range(10, 110)]
    answer = post("/v1/embeddings", input=inputs)
    alone = post("/v1/embeddings", input=inputs[77])
    assert len(answer["data"]) == 100
    assert answer["data"][77]["embedding"] == alone["data"][0]["embedding"]
