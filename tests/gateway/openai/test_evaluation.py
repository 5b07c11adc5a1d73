"""Embeddings, scores and rankings from HTTP to what is asked of the nodes, and back."""

import asyncio
import base64
import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import numpy as np
import pytest

from gateway.http.call import CallLimits
from gateway.http.door import Door
from gateway.http.errors import ApiError
from gateway.http.services import Evaluated, EvaluationAsked, Services
from gateway.openai.evaluation import MAX_IN_FLIGHT, evaluation_routes
from tandem.messages.common import TokenLogprobs
from tests.gateway.openai.ledger_script import OFFER, ByteText


def numbers(asked: EvaluationAsked) -> Evaluated:
    """embed: what the ids say; score: a byte above 100 is twice as likely; classify: the length."""
    ids = asked.prompt_ids.array
    if asked.task == "score":
        logprobs = [-1.0 if i > 100 else -2.0 for i in ids[asked.first_scored :]]
        told = tuple(TokenLogprobs(logprob=each) for each in logprobs)
        return Evaluated(len(ids), logprobs=told)
    vector = [len(ids), ids[0], ids[-1]] if asked.task == "embed" else [len(ids) - 5]
    return Evaluated(len(ids), vector=np.array(vector, np.float32))


@dataclass
class Nodes:
    """Answers `Evaluate`, and remembers what was asked."""

    answer: Callable[[EvaluationAsked], Evaluated] = numbers
    num_labels: int = 0
    asked: list[EvaluationAsked] = field(default_factory=list)
    hold: Callable[[], Awaitable[object]] = lambda: asyncio.sleep(0)
    num_running: int = 0
    most_running: int = 0

    async def __call__(self, asked: EvaluationAsked, *, key: str | None) -> Evaluated:
        self.asked.append(asked)
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        try:
            await self.hold()
            return self.answer(asked)
        finally:
            self.num_running -= 1

    def services(self) -> Services:
        return Services(
            offer=lambda: replace(OFFER, num_labels=self.num_labels),
            open=lambda submit, key, request_id=None: pytest.fail("nothing is generated"),
            turn_away=lambda submit, key, num_bytes: pytest.fail("nothing is generated"),
            text=ByteText(),
            evaluate=self,
            created_unix_s=0,
        )


@contextlib.asynccontextmanager
async def talking(nodes: Nodes) -> AsyncIterator[httpx.AsyncClient]:
    door = Door(
        evaluation_routes(nodes.services()),
        keys=None,
        limits=CallLimits(),
        max_bodies_bytes=1 << 20,
    )
    transport = httpx.ASGITransport(door)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


def post(path: str, nodes: Nodes | None = None, *, status: int = 200, **body: Any) -> Any:
    async def run() -> httpx.Response:
        async with talking(nodes or Nodes()) as client:
            return await client.post(path, json=body)

    response = asyncio.run(run())
    assert response.status_code == status, response.text
    return response.json()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("ab", [[2, 97, 98]]),
        (["ab", "c"], [[2, 97, 98], [1, 99, 99]]),
        ([5, 6, 7], [[3, 5, 7]]),
        ([[5, 6], [9]], [[2, 5, 6], [1, 9, 9]]),
    ],
)
def test_every_form_of_input_is_embedded(given: Any, expected: list[list[float]]) -> None:
    answer = post("/v1/embeddings", input=given, normalize=False)
    assert answer["object"] == "list"
    assert answer["model"] == "demo"
    assert [each["embedding"] for each in answer["data"]] == expected
    assert [each["index"] for each in answer["data"]] == list(range(len(expected)))
    num_tokens = sum(int(each[0]) for each in expected)
    assert answer["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}


def test_vectors_are_cut_then_normalised() -> None:
    [whole] = post("/v1/embeddings", input=[3, 4])["data"]
    assert whole["embedding"] == pytest.approx(np.array([2, 3, 4]) / math.sqrt(29))
    [cut] = post("/v1/embeddings", input=[3, 4], dimensions=2)["data"]
    assert cut["embedding"] == pytest.approx(np.array([2, 3]) / math.sqrt(13))
    [packed] = post("/v1/embeddings", input=[3, 4], encoding_format="base64")["data"]
    unpacked = np.frombuffer(base64.b64decode(packed["embedding"]), "<f4")
    assert unpacked.tolist() == whole["embedding"]
    zero = Nodes(lambda asked: Evaluated(1, vector=np.zeros(3, np.float32)))
    assert post("/v1/embeddings", zero, input="a")["data"][0]["embedding"] == [0, 0, 0]


def test_what_is_asked_of_the_nodes() -> None:
    nodes = Nodes()
    own = {"sla_class": "batch", "priority": 3, "ttft_ms": 700}
    post("/v1/embeddings", nodes, input="ab", pooling="mean", **own)
    [asked] = nodes.asked
    assert asked.ttft_ms == 700.0
    assert (asked.task, asked.pooling) == ("embed", "mean")
    assert (asked.sla_class, asked.priority, asked.deadline_s) == ("batch", 3, None)
    nodes = Nodes()
    post("/v1/score", nodes, text_1="abc", text_2="de", deadline_s=5)
    [asked] = nodes.asked
    assert (asked.task, asked.first_scored, asked.deadline_s) == ("score", 3, 5.0)
    assert bytes(asked.prompt_ids.array.tolist()) == b"abcde"


def test_scores_without_a_head_are_mean_logprobs() -> None:
    answer = post("/v1/score", text_1="abc", text_2=["zz", "1z"])
    assert answer["data"] == [
        {"index": 0, "score": -1.0, "object": "score", "sum_logprob": -2.0, "num_tokens": 2},
        {"index": 1, "score": -1.5, "object": "score", "sum_logprob": -3.0, "num_tokens": 2},
    ]
    pairs = post("/score", text_1=["a", "bb"], text_2=["c", "dd"])
    assert [each["num_tokens"] for each in pairs["data"]] == [1, 2]
    assert pairs["usage"]["prompt_tokens"] == 6


def two_classes(asked: EvaluationAsked) -> Evaluated:
    return Evaluated(1, vector=np.array([1.0, 3.0], np.float32))


def test_scores_of_a_head_are_probabilities() -> None:
    nodes = Nodes(num_labels=1)
    answer = post("/v1/score", nodes, text_1="abc", text_2=["de", "defg"])
    assert [each["score"] for each in answer["data"]] == pytest.approx([0.5, 1 / (1 + math.e**-2)])
    assert "sum_logprob" not in answer["data"][0]
    assert {asked.task for asked in nodes.asked} == {"classify"}
    raw = post("/v1/score", nodes, text_1="abc", text_2="defg", use_activation=False)
    assert raw["data"][0]["score"] == 2.0
    both = post("/v1/score", Nodes(two_classes, num_labels=2), text_1="a", text_2="b")
    assert both["data"][0]["score"] == pytest.approx(1 / (1 + math.e**-2))
    error = post("/v1/score", Nodes(num_labels=3), status=400, text_1="a", text_2="b")
    assert "3 classes" in error["error"]["message"]


def test_a_ranking_puts_the_best_first() -> None:
    def likely(asked: EvaluationAsked) -> Evaluated:
        """The longer the document, the likelier the query."""
        logprob = -10.0 / asked.first_scored
        return Evaluated(9, logprobs=(TokenLogprobs(logprob=logprob),) * 2)

    documents = ["a", {"text": "abcd", "id": 5}, "ab", "cd"]
    answer = post("/v1/rerank", Nodes(likely), query="q", documents=documents)
    assert [each["index"] for each in answer["results"]] == [1, 2, 3, 0]
    assert [each["document"]["text"] for each in answer["results"]] == ["abcd", "ab", "cd", "a"]
    assert answer["results"][0]["relevance_score"] == pytest.approx(math.exp(-10 / 6))
    asked = {"query": "q", "documents": documents, "top_n": 2, "return_documents": False}
    best = post("/rerank", Nodes(likely), **asked)["results"]
    assert [sorted(each) for each in best] == [["index", "relevance_score"]] * 2


def test_a_head_judges_the_query_before_the_document() -> None:
    nodes = Nodes(num_labels=1)
    answer = post("/v1/rerank", nodes, query="q", documents=["abcde", "ab"])
    assert {bytes(asked.prompt_ids.array.tolist()) for asked in nodes.asked} == {b"qabcde", b"qab"}
    assert answer["results"][0]["index"] == 0


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/embeddings", {"input": []}, "input"),
        ("/v1/embeddings", {"input": ""}, "input"),
        ("/v1/embeddings", {"input": ["a", 1]}, "input"),
        ("/v1/embeddings", {"input": [[]]}, "input"),
        ("/v1/embeddings", {"input": [2**31]}, "input"),
        ("/v1/embeddings", {"input": ["a"] * 2049}, "input"),
        ("/v1/embeddings", {"input": "a", "dimensions": 4}, "dimensions"),
        ("/v1/embeddings", {"input": "a", "dimensions": 0}, "dimensions"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ("/v1/embeddings", {"input": "a", "truncate_prompt_tokens": 1}, "truncate_prompt_tokens"),
        ("/v1/embeddings", {"input": "a", "priority": 10**6}, "priority"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": "c"}, "text_2"),
        ("/v1/score", {"text_1": "a", "text_2": ""}, "text_2"),
        ("/v1/score", {"text_1": "a", "text_2": []}, "text_2"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": 0}, "top_n"),
        ("/v1/rerank", {"query": "a", "documents": [{"title": "b"}]}, "documents[0]"),
    ],
)
def test_what_is_wrong_is_named(path: str, body: dict[str, Any], param: str) -> None:
    error = post(path, status=400, **body)["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param


def test_inputs_run_together_within_a_cap() -> None:
    nodes = Nodes(hold=lambda: asyncio.sleep(0.001))
    post("/v1/embeddings", nodes, input=[[i] for i in range(100)])
    assert nodes.most_running == MAX_IN_FLIGHT


def test_the_first_failure_ends_the_others() -> None:
    def answer(asked: EvaluationAsked) -> Evaluated:
        raise ApiError(429, "full", code="overloaded", retry_after_s=7.0)

    nodes = Nodes(answer)
    error = post("/v1/embeddings", nodes, status=429, input=[[i] for i in range(200)])
    assert error["error"]["code"] == "overloaded"
    assert nodes.num_running == 0
    assert len(nodes.asked) <= 2 * MAX_IN_FLIGHT
