"""Streams whose gateway stops: where they go on, how long they try, and that they always end."""

import asyncio
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tandem import AsyncClient, GatewayUnreachableError, InternalError, OverloadedError
from tandem.async_stream import AsyncStream
from tandem.keys import KeyFolder
from tandem.messages.client import Done, Refused, Submit
from tests.tandem.conftest import ScriptedGateway


class Stopping(ScriptedGateway):
    """`hang` ends as on a gateway that stops; resumptions are refused `num_refusals` times."""

    num_refusals = 0
    retry_after_s = 0.1

    def answer(self, peer: bytes, submit: Submit) -> None:
        if submit.resume is not None and self.num_refusals:
            self.num_refusals -= 1
            refused = Refused(
                label=submit.label,
                code="overloaded",
                message="full",
                retry_after_s=self.retry_after_s,
            )
            self.server.send(peer, refused)
        else:
            super().answer(peer, submit)

    def stream(self, peer: bytes, request_id: bytes, words: list[str]) -> None:
        done = Done(
            request_id=request_id, reason="failed", code="unavailable", message="stops",
            usage=self.done(request_id, 0, "stop").usage,
            timeline=self.done(request_id, 0, "stop").timeline,
            sla_class="standard", sla_attained=False,
        )  # fmt: skip
        self.server.send(peer, done)
        self.num_in_flight -= 1


class Second(Stopping):
    """Goes on with everything."""

    def stream(self, peer: bytes, request_id: bytes, words: list[str]) -> None:
        ScriptedGateway.stream(self, peer, request_id, ["count", "2"])


@pytest.fixture
def gateways() -> Iterator[tuple[Stopping, Second]]:
    """One that stops every request, and one that takes them."""
    made = Stopping(), Second()
    yield made
    for each in made:
        each.stop()


def resumptions(gateway: Any) -> int:
    return sum(isinstance(m, Submit) and m.resume is not None for m in gateway.received)


def test_refusals_that_name_a_time_are_tried_again_then(gateways: Any) -> None:
    first, second = gateways
    first.num_refusals, second.num_refusals = 9, 2
    first.retry_after_s = second.retry_after_s = 2.3

    async def run() -> None:
        async with AsyncClient([first.address, second.address]) as client:
            started = time.monotonic()
            stream = await client.submit("hang")
            result = await asyncio.wait_for(stream.finish(), 15)
            assert result.token_ids == (100, 101)
            assert 4.6 < time.monotonic() - started < 8, "two rounds, each waited for in full"

    asyncio.run(run())
    assert resumptions(second) == 3
    assert resumptions(first) == 2


def test_a_time_that_is_too_far_off_fails_the_stream(gateways: Any) -> None:
    first, second = gateways
    first.num_refusals = second.num_refusals = 9
    first.retry_after_s = second.retry_after_s = 31.0

    async def run() -> None:
        async with AsyncClient([first.address, second.address]) as client:
            stream = await client.submit("hang")
            with pytest.raises(OverloadedError, match="full"):
                await asyncio.wait_for(stream.finish(), 5)

    asyncio.run(run())


def test_an_error_of_ours_fails_the_stream(gateways: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(stream: AsyncStream) -> Submit:
        raise ValueError("broken")

    monkeypatch.setattr(AsyncStream, "resumption", broken)

    async def run() -> None:
        async with AsyncClient([each.address for each in gateways]) as client:
            stream = await client.submit("hang")
            with pytest.raises(InternalError, match="broken"):
                await asyncio.wait_for(stream.finish(), 5)

    asyncio.run(run())


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:bad", "tcp://h:0", "h:7301", "tcp://h:99999"])
def test_an_address_that_cannot_be_dialled_is_refused_at_once(address: str) -> None:
    with pytest.raises(ValueError, match="use tcp://host:port"):
        AsyncClient(["tcp://127.0.0.1:7301", address])


def test_missing_keys_are_refused_at_once_and_unreachable_later(tmp_path: Path) -> None:
    folder = KeyFolder.create(tmp_path / "keys")
    for kind, name in (("gateway", "gateway"), ("client", "c")):
        folder.add(kind, name)
    with pytest.raises(ValueError, match="no public key of gateway/other"):
        AsyncClient(["tcp://127.0.0.1:9", "tcp://127.0.0.1:9#other"], keys=folder.folder)

    async def run() -> None:
        async with AsyncClient("tcp://127.0.0.1:9", keys=folder.folder) as client:
            shutil.rmtree(folder.folder / "public" / "gateway")
            with pytest.raises(GatewayUnreachableError, match="no public key"):
                await client.submit("x")

    asyncio.run(run())
