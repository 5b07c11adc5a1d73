"""Commands with JSON schemas wait for the compiler, beside the step thread, or are refused."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from node import schema_desk
from node.schema_desk import SchemaDesk
from tandem.frames import TokenIds
from tandem.json_schema import NoGrammarLibraryError
from tandem.messages.common import SlaTargets
from tandem.messages.serving import Cancel, CommandRefused, Decode, RequestSpec
from tandem.sampling import SamplingParams

GATEWAY = b"gateway/g/1"


def decode(schema: str | None = "{}", number: int = 1) -> Decode:
    spec = RequestSpec(
        request_id=number.to_bytes(16, "big"),
        attempt=1,
        prompt_ids=TokenIds([1, 2]),
        output_ids=TokenIds(),
        params=SamplingParams(max_tokens=4, json_schema=schema),
        seed=1,
        choice=0,
        tenant="default",
        priority=0,
        targets=SlaTargets(sla_class="standard", ttft_ms=1.0, tpot_ms=1.0),
        deadline_s=None,
        sequence=number,
    )
    return Decode(spec=spec, prefill=None)


class Compiler:
    """Compiles when it is let, or fails; notes in which threads."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.compiled: set[str] = set()
        self.threads: set[str] = set()
        self.gate = threading.Event()

    def is_prepared(self, schema: str) -> bool:
        return schema in self.compiled

    def prepare(self, schema: str) -> None:
        assert self.gate.wait(10)
        self.threads.add(threading.current_thread().name)
        if self.error is not None:
            raise self.error
        self.compiled.add(schema)


def with_desk(compiler: Any, scenario: Callable[[SchemaDesk, list[Any], list[Any]], Any]) -> None:
    async def run() -> None:
        taken: list[Any] = []
        answered: list[Any] = []
        desk = SchemaDesk(
            compiler,
            take=lambda peer, command: taken.append((peer, command)),
            answer=lambda peer, refused: answered.append((peer, refused)),
        )
        try:
            await scenario(desk, taken, answered)
        finally:
            compiler.gate.set()
            await desk.close()

    asyncio.run(run())


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():  # noqa: ASYNC110  what is waited for has no event
            await asyncio.sleep(0.001)


def test_a_command_waits_until_its_schema_is_compiled_by_another_thread() -> None:
    compiler = Compiler()

    async def scenario(desk: SchemaDesk, taken: list[Any], answered: list[Any]) -> None:
        first, second = decode(), decode(number=2)
        for command in (first, second, first):
            assert desk.is_for(command)
            desk.handle(GATEWAY, command)
        await asyncio.sleep(0.01)
        assert taken == []
        compiler.gate.set()
        await until(lambda: len(taken) == 3)
        assert taken == [(GATEWAY, first), (GATEWAY, second), (GATEWAY, first)]
        assert answered == []
        assert not desk.is_for(decode(number=3)), "the next one need not wait"

    with_desk(compiler, scenario)
    assert all(name.startswith("schemas") for name in compiler.threads)


def test_nothing_else_is_held_up() -> None:
    compiler = Compiler()

    async def scenario(desk: SchemaDesk, taken: list[Any], answered: list[Any]) -> None:
        assert not desk.is_for(decode(schema=None))
        assert not desk.is_for(Cancel(request_id=bytes(16), attempt=1))

    with_desk(compiler, scenario)
    compiler = Compiler()
    without = SchemaDesk(None, take=print, answer=print)
    assert not without.is_for(decode()), "tokens of a fake device do not depend on schemas"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("an unknown keyword"), "invalid_request"),
        (NoGrammarLibraryError("pip install 'tandem-serve[structured]'"), "unavailable"),
        (RuntimeError("out of luck"), "internal"),
    ],
)
def test_what_cannot_be_compiled_is_refused(
    error: Exception, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = Compiler(error)
    compiler.gate.set()

    async def scenario(desk: SchemaDesk, taken: list[Any], answered: list[Any]) -> None:
        desk.handle(GATEWAY, decode())
        await until(lambda: bool(answered))
        ((peer, refused),) = answered
        assert peer == GATEWAY and isinstance(refused, CommandRefused)
        assert (refused.command, refused.code) == ("decode", code)
        assert str(error) in refused.message
        assert taken == []

    with_desk(compiler, scenario)


def test_what_waits_is_bounded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(schema_desk, "MAX_HELD", 2)
    compiler = Compiler()

    async def scenario(desk: SchemaDesk, taken: list[Any], answered: list[Any]) -> None:
        for number in (1, 2, 3):
            desk.handle(GATEWAY, decode(number=number))
        compiler.gate.set()
        await until(lambda: len(taken) == 2)

    with_desk(compiler, scenario)
    assert "one is dropped" in caplog.text
