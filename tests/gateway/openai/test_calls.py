"""Calls on their way: what reaches the ledger, failures, repeated calls, callers who hang up."""

import asyncio
import itertools
from typing import Any

import httpx
import pytest

from gateway.openai import serving
from tests.gateway.openai.calls import CHAT, HI, chat, chat_chunks, post, talking, until
from tests.gateway.openai.ledger_script import ByteText, Played, failing, saying


def test_what_a_request_asks_reaches_the_ledger() -> None:
    played = Played()
    chat(
        played,
        seed=-1,
        sla_class="batch",
        ttft_ms=100,
        priority=3,
        deadline_s=9,
        n=2,
        max_completion_tokens=2,
        response_format={"type": "json_object"},
        user="me",
    )
    first, second = played.submits
    assert (first.choice, second.choice) == (0, 1)
    assert (first.sla_class, first.ttft_ms, first.priority, first.deadline_s) == (
        "batch",
        100,
        3,
        9,
    )
    assert first.params == second.params
    assert (first.params.seed, first.params.max_tokens) == (2**64 - 1, 2)
    assert first.params.json_schema == '{"type":"object"}'
    assert first.label != second.label


def test_an_answers_id_is_that_of_its_first_request() -> None:
    played = Played()
    answer = post("/v1/completions", played, prompt="a", n=2).json()
    first, second = played.request_ids
    assert first is not None and answer["id"] == f"cmpl-{first.hex()}"
    assert second is None


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_behind_a_shut_door_no_prompt_is_made_into_tokens(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ByteText, "encode", None)
    monkeypatch.setattr(ByteText, "render", None)
    body = CHAT if "chat" in path else {"prompt": "a"}
    answer = post(path, Played(full_for_s=7.1), **body, sla_class="batch")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "8")
    error = answer.json()["error"]
    assert (error["code"], error["message"]) == ("overloaded", "full for batch")


def test_refusals_and_failures_before_the_first_token_have_a_status() -> None:
    overloaded = failing(code="overloaded", message="too much", retry_after_s=3.2)
    for is_streamed in (False, True):
        answer = post("/v1/chat/completions", Played(overloaded), **CHAT, stream=is_streamed, n=2)
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "4"
        assert answer.json()["error"]["code"] == "overloaded"
    nameless = post("/v1/chat/completions", messages=HI)
    assert (nameless.status_code, nameless.json()["error"]["param"]) == (400, "model")
    unknown = post("/v1/completions", prompt="a" * 600)
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (400, "context_too_long")


def test_one_choices_failure_ends_the_whole_in_band() -> None:
    def script(submit):
        fails = failing(2, code="node_failed", message="node gone")
        return (fails if submit.choice == 1 else saying("endless" * 50))(submit)

    played = Played(script)
    chunks = chat_chunks(played, n=3)
    assert chunks[-1]["error"]["message"] == "node gone"
    assert chunks[-1]["error"]["type"] == "service_unavailable_error"
    assert all(stream.is_cancelled for stream in played.streams)
    answer = post("/v1/chat/completions", Played(script), **CHAT, n=3)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "node_failed")


def test_errors_of_ours_end_a_stream_too() -> None:
    def without_an_end(submit):
        return saying("abcdef")(submit)[:-1]

    played = Played(without_an_end)
    assert chat_chunks(played)[-1]["error"]["code"] == "internal"
    assert chat_chunks(Played(played.script), n=2)[-1]["error"]["code"] == "internal"


def test_a_slow_first_token_does_not_hold_the_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "SETTLE_S", 0.05)

    async def run() -> None:
        played = Played()
        played.gate.clear()
        async with talking(played) as client:
            body = {**CHAT, "stream": True}
            asked = asyncio.create_task(client.post("/v1/chat/completions", json=body))
            await asyncio.sleep(0.2)
            played.gate.set()
            answer = await asked
        assert answer.text.endswith("data: [DONE]\n\n") and '"c"' in answer.text

    asyncio.run(run())


def test_others_follow_when_the_first_token_is_there() -> None:
    async def run() -> None:
        played = Played()
        played.gate.clear()
        async with talking(played) as client:
            body = {"prompt": ["ab", "cd"], "n": 3}
            asked = asyncio.create_task(client.post("/v1/completions", json=body))
            await until(lambda: len(played.submits) > 1)
            assert [submit.choice for submit in played.submits] == [0, 0]
            played.gate.set()
            answer = await asked
        assert len(answer.json()["choices"]) == 6
        assert sorted(submit.choice for submit in played.submits) == [0, 0, 1, 1, 2, 2]

    asyncio.run(run())


def test_a_repeated_call_runs_once() -> None:
    async def run() -> None:
        played = Played()
        played.gate.clear()
        headers = {"Idempotency-Key": "k1"}
        async with talking(played) as client:

            async def ask(**body: Any) -> httpx.Response:
                body = {"prompt": "ab", **body}
                return await client.post("/v1/completions", json=body, headers=headers)

            first, second = asyncio.create_task(ask()), asyncio.create_task(ask())
            await until(lambda: len(played.submits) > 0)
            played.gate.set()
            answers = {(await first).text, (await second).text, (await ask()).text}
            assert len(answers) == 1 and len(played.submits) == 1
            other = await ask(prompt="cd")
            assert other.status_code == 400
            assert other.json()["error"]["code"] == "idempotency_key_reused"
            headers["Idempotency-Key"] = "k2"
            played.script = failing(code="overloaded", message="no")
            assert (await ask()).status_code == 429
            played.script = Played().script
            assert (await ask()).status_code == 200

    asyncio.run(run())


def test_who_hangs_up_cancels_all() -> None:
    async def run() -> None:
        played = Played()
        played.gate.clear()

        async def opened(num_streams: int) -> None:
            await until(lambda: len(played.streams) == num_streams)

        async with talking(played) as client:
            calls = itertools.product(({}, {"Idempotency-Key": "k"}), (False, True))
            for number, (headers, is_streamed) in enumerate(calls, 1):
                body = {"prompt": ["a", "b"], "n": 2, "stream": is_streamed}
                asked = asyncio.create_task(
                    client.post("/v1/completions", json=body, headers=headers)
                )
                await opened(2 * number)
                asked.cancel()
                await asyncio.gather(asked, return_exceptions=True)
                await until(lambda: all(stream.is_cancelled for stream in played.streams))
        assert all(submit.choice == 0 for submit in played.submits), "no first token came"

    asyncio.run(run())
