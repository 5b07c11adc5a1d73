"""Both clients against a scripted gateway: streams, errors, cancels, lost gateways, no leaks."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tandem import (
    AsyncClient,
    ChatMessage,
    Client,
    ContextTooLongError,
    GatewayUnreachableError,
    InternalError,
    InvalidRequestError,
    NodeFailedError,
    OverloadedError,
    RateLimitedError,
    SamplingParams,
    TandemError,
    UnavailableError,
    UnknownSlaClassError,
    gateway_link,
    live_streams,
)
from tandem.errors import ERROR_TYPES, error_from_code
from tandem.messages.client import CancelRequest, Malformed, Resume, Submit
from tandem.messages.common import ErrorCode


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether it becomes true within two seconds."""
    deadline = time.monotonic() + 2
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def received(gateway: Any, kind: type) -> list[Any]:
    return [message for message in gateway.received if isinstance(message, kind)]


def test_a_stream_of_chunks_and_its_result(gateway: Any) -> None:
    async def run() -> None:
        async with AsyncClient(gateway.address) as client:
            stream = await client.submit("count 3", params=SamplingParams(seed=5))
            chunks = [chunk async for chunk in stream]
            assert [chunk.index for chunk in chunks] == [0, 1, 2]
            assert stream.is_over and stream.num_prompt_tokens == 2 and stream.seed == 5
            result = stream.result
            assert result.text == "0 1 2 " and result.token_ids == (100, 101, 102)
            assert result.finish_reason == "stop" and result.sla_attained
            assert result.usage.num_output_tokens == 3
            assert result.timeline.prefill_node == "prefill-0"
            assert result.request_id == stream.request_id
            assert await stream.finish() == result  # the end may be asked for again

    asyncio.run(run())


def test_tokens_and_text_one_by_one(gateway: Any) -> None:
    with Client(gateway.address) as client:
        assert list(client.submit("count 3").tokens()) == [100, 101, 102]
        assert list(client.submit("count 2").text()) == ["0 ", "1 "]
        assert list(client.submit("count 0").text()) == []


def test_every_option_travels(gateway: Any) -> None:
    with Client(gateway.address) as client:
        client.submit(
            "count 1", params=SamplingParams(max_tokens=3, stop=("\n",)), model="m",
            sla_class="batch", ttft_ms=10.0, tpot_ms=5.0, priority=-3, deadline_s=9.0,
        ).finish()  # fmt: skip
    (submit,) = received(gateway, Submit)
    assert submit.params == SamplingParams(max_tokens=3, stop=("\n",))
    assert (submit.model, submit.sla_class, submit.ttft_ms, submit.tpot_ms) == ("m", "batch", 10, 5)
    assert (submit.priority, submit.deadline_s) == (-3, 9.0)


def test_the_three_kinds_of_prompt(gateway: Any) -> None:
    with Client(gateway.address) as client:
        results = client.generate(
            [
                "count 1",
                [1, 2, 3],
                [{"role": "system", "content": "x"}, {"role": "user", "content": "count 2"}],
                [ChatMessage(role="user", content="count 4")],
            ],
            progress=False,
        )
        chat = client.submit(chat=[{"role": "user", "content": "count 5"}]).finish()
    assert [r.usage.num_output_tokens for r in [*results, chat]] == [1, 3, 2, 4, 5]
    texts = received(gateway, Submit)
    assert texts[0].prompt.data == b"count 1" and texts[1].prompt_ids.array.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "exactly one of"),
        ({"prompt": "a", "prompt_ids": [1]}, "exactly one of"),
        ({"prompt_ids": [2**40]}, "cannot be sent"),
        ({"prompt": "\ud800"}, "cannot be sent"),
        ({"chat": [{"role": "robot", "content": "x"}]}, "role"),
        ({"prompt": "x" * (5 << 20)}, "over 4 MiB"),
        ({"prompt": "x", "priority": 1000}, "priority"),
        ({"prompt": "x", "sla_class": "no\nname"}, "sla_class"),
        ({"prompt": "x", "params": SamplingParams(stop=("y",) * 40)}, "stop"),
    ],
)
def test_bad_requests_never_leave(gateway: Any, arguments: dict[str, Any], words: str) -> None:
    with Client(gateway.address) as client:
        with pytest.raises(InvalidRequestError, match=words) as caught:
            client.submit(**arguments)
        assert caught.value.code == "invalid_request"
        assert client.submit("count 1").finish().text == "0 "
    assert len(received(gateway, Submit)) == 1


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("overloaded", OverloadedError),
        ("no_decode_node", UnavailableError),
        ("too_few_pages", ContextTooLongError),
        ("unknown_sla_class", UnknownSlaClassError),
    ],
)
def test_a_refusal_is_raised_by_submit(gateway: Any, code: str, kind: type[TandemError]) -> None:
    with Client(gateway.address) as client, pytest.raises(kind) as caught:
        client.submit(f"refuse {code}")
    assert (caught.value.code, caught.value.retry_after_s, str(caught.value)) == (code, 2.0, "no")


def test_every_code_has_a_type_and_a_text() -> None:
    assert set(ERROR_TYPES) == set(ErrorCode.__args__)  # type: ignore[attr-defined]
    assert type(error_from_code(None, None)) is InternalError
    assert "'overloaded'" in str(error_from_code("overloaded", None))


def test_a_failed_request_raises_after_what_came_before(gateway: Any) -> None:
    with Client(gateway.address) as client:
        stream = client.submit("fail")
        texts = stream.text()
        assert [next(texts), next(texts)] == ["0 ", "1 "]
        with pytest.raises(NodeFailedError, match="prefill-0 died"):
            next(texts)
        assert stream.received_text == "0 1 "
        with pytest.raises(NodeFailedError):
            _ = stream.result


def test_a_jump_that_no_resumption_mends_is_an_error_and_cancels(
    gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_streams, "MAX_FRUITLESS", 2)
    with Client(gateway.address) as client:
        with pytest.raises(InternalError, match="does not go on after token 2"):
            client.submit("jump").finish()
        assert [m.next_index for m in received(gateway, Resume)] == [2, 2]
        assert eventually(lambda: len(received(gateway, CancelRequest)) == 1)


def test_cancel_ends_the_stream_without_an_error(gateway: Any) -> None:
    with Client(gateway.address) as client:
        stream = client.submit("hang")
        assert next(iter(stream)).index == 0
        with pytest.raises(ValueError, match="not over"):
            _ = stream.result
        stream.cancel()
        stream.cancel()
        assert stream.finish().finish_reason == "cancelled"
    assert len(received(gateway, CancelRequest)) == 1


def test_leaving_a_with_block_or_closing_cancels(gateway: Any) -> None:
    with Client(gateway.address) as client:
        with client.submit("hang") as stream:
            assert not stream.is_over
        client.submit("hang")
    assert eventually(lambda: len(received(gateway, CancelRequest)) == 2)


def test_a_cancelled_task_cancels_its_request(gateway: Any) -> None:
    async def run() -> None:
        async with AsyncClient(gateway.address) as client:
            task = asyncio.create_task(client.generate(["hang"], progress=False))
            await asyncio.to_thread(eventually, lambda: bool(received(gateway, Submit)))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(
                eventually, lambda: len(received(gateway, CancelRequest)) == 1
            )

    asyncio.run(run())


def test_generate_keeps_order_and_bounds_concurrency(gateway: Any) -> None:
    with Client(gateway.address) as client:
        results = client.generate(
            [f"count {n}" for n in range(40)], max_in_flight=4, progress=False
        )
        assert [len(r.token_ids) for r in results] == list(range(40))
        assert 1 < gateway.most_in_flight <= 4
        with pytest.raises(ValueError, match="max_in_flight is 0"):
            client.generate(["count 1"], max_in_flight=0)
        assert client.generate([]) == []


def test_generate_shows_progress(gateway: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with Client(gateway.address) as client:
        client.generate(["count 1"] * 3)
    assert "3/3" in capsys.readouterr().err


def test_one_failure_does_not_lose_the_others(gateway: Any) -> None:
    prompts = ["count 1", "fail", "refuse overloaded", "count 2"]
    with Client(gateway.address) as client:
        answers = client.generate(prompts, progress=False, return_exceptions=True)
        assert [type(a).__name__ for a in answers] == [
            "Result", "NodeFailedError", "OverloadedError", "Result",
        ]  # fmt: skip
        with pytest.raises(NodeFailedError) as caught:
            client.generate(prompts, progress=False)
        assert "2 of 4 requests failed" in caught.value.__notes__[0]


def test_no_gateway_is_said_soon_and_clearly() -> None:
    with Client("tcp://127.0.0.1:9", connect_timeout_s=0.2) as client:
        with pytest.raises(
            GatewayUnreachableError, match=r"127\.0\.0\.1:9 within 0\.2 s"
        ) as caught:
            client.submit("count 1")
        assert "tandem up" in str(caught.value)
    with pytest.raises(ValueError, match="use tcp://host:port"):
        Client("nonsense")


def test_a_gateway_that_goes_away_for_good_ends_streams(gateway: Any) -> None:
    with Client(gateway.address, connect_timeout_s=0.3, silence_s=1.0) as client:
        stream = client.submit("hang")
        texts = stream.text()
        assert [next(texts), next(texts)] == ["0 ", "1 "]
        gateway.stop()
        with pytest.raises(GatewayUnreachableError, match="closed the connection"):
            stream.finish()
        assert stream.received_text == "0 1 "
        with pytest.raises(GatewayUnreachableError, match="no gateway answers"):
            client.submit("count 1")


def test_a_gateway_that_falls_silent_is_given_up(gateway: Any) -> None:
    with Client(gateway.address, silence_s=1.0) as client:
        stream = client.submit("hang")
        gateway.is_mute = True
        with pytest.raises(GatewayUnreachableError, match="said nothing for 1 s"):
            stream.finish()


def test_an_unreadable_message_fails_what_waits(gateway: Any) -> None:
    async def run() -> None:
        async with AsyncClient(gateway.address) as client:
            waiting = asyncio.create_task(client.submit("mute"))
            await asyncio.to_thread(eventually, lambda: bool(received(gateway, Submit)))
            # What a gateway of another version would say.
            gateway._loop.call_soon_threadsafe(
                lambda: [gateway.server.send(p, Malformed(message="version 2")) for p in peers]
            )
            with pytest.raises(InternalError, match="version 2"):
                await waiting

    peers: list[bytes] = []
    original = gateway.handle

    def remember(peer: bytes, message: Any) -> None:
        peers.append(peer)
        original(peer, message)

    gateway.handle = remember
    asyncio.run(run())


def test_a_request_that_the_gateway_dropped_is_sent_again(
    gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_link, "RESEND_S", 0.25)
    gateway.num_to_drop = 3
    with Client(gateway.address) as client:
        results = client.generate(["count 1"] * 5, progress=False)
    assert [result.text for result in results] == ["0 "] * 5
    labels = [submit.label for submit in received(gateway, Submit)]
    assert len(set(labels)) == 5 and len(labels) == 8


@pytest.mark.parametrize(
    ("num_to_drop", "kind", "words"),
    [(0, UnavailableError, "did not answer"), (99, RateLimitedError, "too fast")],
)
def test_a_request_that_is_never_answered_is_given_up(
    gateway: Any,
    monkeypatch: pytest.MonkeyPatch,
    num_to_drop: int,
    kind: type[TandemError],
    words: str,
) -> None:
    monkeypatch.setattr(gateway_link, "RESEND_S", 0.25)
    gateway.num_to_drop = num_to_drop
    with Client(gateway.address, silence_s=0.5) as client:
        with pytest.raises(kind, match=words):
            client.submit("mute")
        gateway.num_to_drop = 0
        assert client.submit("count 1").finish().text == "0 "
    assert len(received(gateway, Submit)) > 2


def test_ping_and_waiting_until_ready(gateway: Any) -> None:
    with Client(gateway.address) as client:
        gateway.is_ready = False
        assert client.ping().ready is False
        with pytest.raises(GatewayUnreachableError, match=r"after 0\.1 s knows no"):
            client.wait_until_ready(0.1)
        gateway.is_ready = True
        assert client.wait_until_ready(1).model == "m"


def test_waiting_for_a_gateway_that_is_not_up_yet_lasts_as_long_as_asked(
    fake_processes: Path, free_port: Callable[[], int]
) -> None:
    """The gateway comes after the client has been silent for longer than `silence_s`."""
    port = free_port()
    with Client(f"tcp://127.0.0.1:{port}", silence_s=1.0, connect_timeout_s=0.2) as client:
        started = time.monotonic()
        with pytest.raises(GatewayUnreachableError, match=r"no gateway answers .* within 2\.5 s"):
            client.wait_until_ready(2.5)
        assert time.monotonic() - started >= 2.4
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "--port", str(port)],
            cwd=fake_processes,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(fake_processes), os.getcwd()])},
            stdout=subprocess.DEVNULL,
        )
        try:
            assert client.wait_until_ready(15).model == "m"
        finally:
            process.kill()
            process.wait(10)


def test_closing_leaves_no_thread_and_no_descriptor(gateway: Any) -> None:
    def open_now() -> tuple[int, int]:
        return threading.active_count(), len(os.listdir("/proc/self/fd"))

    def use_a_client() -> None:
        client = Client(gateway.address)
        client.submit("hang")
        client.close()
        client.close()
        with pytest.raises(ValueError, match="was closed"):
            client.submit("count 1")

    use_a_client()
    assert eventually(lambda: len(received(gateway, CancelRequest)) == 1)
    before = open_now()
    use_a_client()
    assert eventually(lambda: open_now() <= before)
