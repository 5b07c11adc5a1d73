"""Tokens written past the layers of ASGI: the same bytes in the same order, whatever happens."""

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from gateway.http.call import SCOPE_KEY, BodyRoom, Call, CallLimits
from gateway.http.direct import BODY, EXTENSION
from gateway.http.local import LocalStream
from gateway.http.sse import SseResponse
from gateway.openai.choices import OneChoice
from gateway.openai.chunks import Head, Shape, Tally
from gateway.openai.completion_answers import CompletionChunks, PromptShown
from gateway.openai.reading import Piece, Reader
from gateway.openai.telling import Telling, frames
from tandem.messages.client import Output
from tandem.sampling import SamplingParams
from tests.gateway.session_desk import accepted, done, output


@dataclass
class Caller:
    """A connection: `body` gathers what is written by either way; a `send` waits for `open`."""

    body: bytes = b""
    is_ready: bool = True
    num_direct: int = 0
    open: asyncio.Event = field(default_factory=asyncio.Event)

    def write(self, part: bytes) -> None:
        self.body += part
        self.num_direct += 1

    async def send(self, message: dict) -> None:
        await self.open.wait()
        self.body += message.get("body", b"")


class Answering:
    """One streamed completion; `stream` takes the ledger's words."""

    def __init__(self, *, is_direct: bool) -> None:
        self.caller, self.tally = Caller(), Tally()
        self.caller.open.set()
        self.stream = LocalStream(lambda request_id: None)
        reader = Reader(SamplingParams(), frozenset(), includes_stop=False, spelled_out=None)
        told = Telling(OneChoice(self.stream), [reader], self.tally)
        self.chunks = CompletionChunks(
            Head("cmpl-1", 1, "demo"), Shape(includes_usage=True), self.tally, [PromptShown(())]
        )
        self.response = SseResponse(
            frames(told, self.chunks),
            on_end=told.close,
            on_direct=lambda body: told.go_direct(body, self.chunks),
        )
        call = Call(request_id="x", limits=CallLimits(), room=BodyRoom(1), thread=None)
        self.scope = {"type": "http", "method": "POST", SCOPE_KEY: call}
        if is_direct:
            self.scope["extensions"] = {EXTENSION: {BODY: self.caller}}

    def start(self) -> asyncio.Task[None]:
        request = Request(self.scope)
        return asyncio.create_task(self.response(self.scope, request.receive, self.caller.send))


async def serve(steps: list[str], *, is_direct: bool) -> Answering:
    """A token per step; before it the connection is as the step says, or the loop turns."""
    answering = Answering(is_direct=is_direct)
    task = answering.start()
    answering.stream.tell(accepted())
    for index, step in enumerate(steps):
        match step:
            case "turn":
                for _ in range(5):
                    await asyncio.sleep(0)
            case "stuck":
                answering.caller.is_ready = False
                answering.caller.open.clear()
            case "reads":
                answering.caller.is_ready = True
                answering.caller.open.set()
        answering.stream.tell(output(index, text=f"<{index}>"))
    answering.caller.open.set()
    answering.stream.tell(done(len(steps)))
    await task
    return answering


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["turn", "turn", "at once", "stuck", "reads"]), max_size=30))
def test_the_answer_is_the_same_by_either_way(steps: list[str]) -> None:
    async def both() -> tuple[Answering, Answering]:
        return await serve(steps, is_direct=True), await serve(steps, is_direct=False)

    direct, plain = asyncio.run(both())
    assert direct.caller.body == plain.caller.body
    assert direct.tally == plain.tally
    assert plain.caller.num_direct == 0


def test_tokens_of_a_caller_who_reads_go_directly() -> None:
    direct = asyncio.run(serve(["turn"] * 20, is_direct=True))
    assert direct.caller.num_direct == 19, "all but the first"


def test_what_cannot_be_written_ends_the_stream_in_band(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = CompletionChunks.piece

    def fails(self: CompletionChunks, index: int, piece: Piece) -> bytes:
        if piece.text == "<3>":
            raise RuntimeError("a mistake of ours")
        return plain(self, index, piece)

    monkeypatch.setattr(CompletionChunks, "piece", fails)
    answering = asyncio.run(serve(["turn"] * 6, is_direct=True))
    body = answering.caller.body.decode()
    assert "<2>" in body and "<4>" not in body
    assert '"code":"internal"' in body and body.endswith("data: [DONE]\n\n")


def test_nothing_is_diverted_after_the_end() -> None:
    async def run() -> None:
        taken: list[Output] = []
        stream = LocalStream(lambda request_id: None)
        reader = asyncio.create_task(stream.next())
        await asyncio.sleep(0)

        def take(word: Output) -> bool:
            taken.append(word)
            return True

        stream.divert(take)
        stream.tell(output(0))
        stream.cancel()
        stream.tell(output(1))
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        assert [each.index for each in taken] == [0]

    asyncio.run(run())
