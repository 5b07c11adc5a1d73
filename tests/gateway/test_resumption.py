"""Streams that outlive links and gateways, over real sockets, by the client library."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest

from tandem.async_client import AsyncClient
from tandem.async_stream import AsyncStream
from tandem.errors import OverloadedError, RateLimitedError, RequestCancelledError, UnavailableError
from tandem.sampling import SamplingParams
from tests.gateway.deployment import Client, Cluster, running_cluster, running_gateway, until

NUM_TOKENS = 150
PARAMS = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0)


def port_of(address: str) -> int:
    return int(address.rsplit(":", 1)[1])


class Relay:
    """A TCP relay in front of a gateway: links die when it says so, or hang without a word."""

    def __init__(self, target: str) -> None:
        self.port = port_of(target)
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task] = set()
        self.is_open = True
        self.num_links = 0
        self.num_forgotten = 0  # links up to this one carry nothing any more

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"tcp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader, writer) -> None:
        if not self.is_open:
            writer.close()
            return
        self.num_links += 1
        there_reader, there = await asyncio.open_connection("127.0.0.1", self.port)
        self._writers += [writer, there]
        for source, sink in ((reader, there), (there_reader, writer)):
            task = asyncio.create_task(self._pump(source, sink, self.num_links))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source, sink, number: int) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                if number > self.num_forgotten:
                    sink.write(data)
        sink.close()

    def cut(self) -> None:
        """Every link breaks now; what is on its way is lost."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def close(self) -> None:
        self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def relayed(address: str) -> AsyncIterator[tuple[Relay, str]]:
    relay = Relay(address)
    try:
        yield relay, await relay.start()
    finally:
        await relay.close()


@pytest.fixture
def stage(served_model, make_world) -> Callable[..., None]:
    """Run body(cluster, start, model) on an event loop."""

    def run(body: Callable[..., Awaitable[None]]) -> None:
        async def main() -> None:
            async with running_cluster(make_world()) as cluster:
                await body(cluster)

        asyncio.run(main())

    return run


async def undisturbed(client: AsyncClient) -> tuple[tuple[int, ...], str]:
    result = await (await client.submit("def f", params=PARAMS)).finish()
    assert len(result.token_ids) == NUM_TOKENS
    return result.token_ids, result.text


class Watched:
    """What an application sees of a stream."""

    def __init__(self, stream: AsyncStream) -> None:
        self.stream = stream
        self.ids: list[int] = []
        self.text = ""
        self.task = asyncio.create_task(self._read())

    def has(self, num_tokens: int) -> bool:
        return len(self.ids) >= num_tokens

    async def _read(self) -> None:
        async for chunk in self.stream:
            assert chunk.index == len(self.ids)
            self.ids += chunk.token_ids
            self.text += chunk.text


def test_a_broken_link_breaks_no_stream(stage, served_model) -> None:
    async def body(cluster: Cluster) -> None:
        async with (
            running_gateway(cluster, served_model) as address,
            relayed(address) as (relay, front),
            AsyncClient(front) as client,
        ):
            expected = await undisturbed(client)
            seen = Watched(await client.submit("def f", params=PARAMS))
            for num_tokens in (10, 50, 90):
                await until(partial(seen.has, num_tokens))
                relay.cut()
            await asyncio.wait_for(seen.task, 10)
            assert (tuple(seen.ids), seen.text) == expected
            assert relay.num_links >= 3
            await until(lambda: len(cluster.ends) == 2)
            assert [end.reason for end in cluster.ends] == ["length", "length"]

    stage(body)


def test_a_link_that_a_network_forgot_is_dialled_anew(stage, served_model) -> None:
    async def body(cluster: Cluster) -> None:
        async with (
            running_gateway(cluster, served_model) as address,
            relayed(address) as (relay, front),
            AsyncClient(front, silence_s=4.0) as client,
        ):
            expected = await undisturbed(client)
            seen = Watched(await client.submit("def f", params=PARAMS))
            await until(lambda: len(seen.ids) >= 20)
            relay.num_forgotten = relay.num_links
            await asyncio.wait_for(seen.task, 10)
            assert (tuple(seen.ids), seen.text) == expected

    stage(body)


def test_another_gateway_goes_on_with_the_streams_of_a_lost_one(stage, served_model) -> None:
    async def body(cluster: Cluster) -> None:
        async with (
            running_gateway(cluster, served_model, name="a", client_silence_s=2.0) as first,
            running_gateway(cluster, served_model, name="b") as second,
            relayed(first) as (relay, front),
            AsyncClient(f"{front}, {second}") as client,
        ):
            expected = await undisturbed(client)
            seen = [Watched(await client.submit("def f", params=PARAMS)) for _ in range(3)]
            first_ids = {each.stream.request_id for each in seen}
            await until(lambda: all(len(each.ids) >= 20 for each in seen))
            relay.is_open = False
            relay.cut()
            for each in seen:
                await asyncio.wait_for(each.task, 10)
                assert (tuple(each.ids), each.text) == expected
                assert each.stream.result.usage.num_output_tokens == NUM_TOKENS
            assert not first_ids & {each.stream.request_id for each in seen}
            await until(lambda: len(cluster.ends) == 7)

    stage(body)


def test_a_restarted_gateway_goes_on_from_what_the_client_has(stage, served_model) -> None:
    """One address, behind which another process answers after a while."""

    async def body(cluster: Cluster) -> None:
        async with (
            running_gateway(cluster, served_model, name="a", client_silence_s=2.0) as first,
            running_gateway(cluster, served_model, name="b") as second,
            relayed(first) as (relay, front),
            AsyncClient(front) as client,
        ):
            expected = await undisturbed(client)
            seen = Watched(await client.submit("def f", params=PARAMS))
            await until(lambda: len(seen.ids) >= 20)
            relay.port = port_of(second)
            relay.cut()
            await asyncio.wait_for(seen.task, 10)
            assert (tuple(seen.ids), seen.text) == expected

    stage(body)


def test_a_gateway_that_is_told_to_leave_finishes_and_refuses(stage, served_model) -> None:
    async def body(cluster: Cluster) -> None:
        stop = asyncio.Event()
        async with running_gateway(cluster, served_model, stop, drain_s=10.0) as address:
            async with AsyncClient(address) as client:
                seen = Watched(await client.submit("def f", params=PARAMS))
                await until(lambda: len(seen.ids) >= 10)
                cluster.orders_drain = True
                await until(lambda: cluster.hellos[-1].is_draining)
                assert not (await client.ping()).ready
                with pytest.raises(UnavailableError, match="stopping"):
                    await client.submit("def f", params=PARAMS)
                await asyncio.wait_for(seen.task, 10)
                assert len(seen.ids) == NUM_TOKENS
            assert not stop.is_set(), "the order came from the coordinator alone"

    stage(body)


def test_a_gateway_that_must_stop_hands_its_streams_to_others(stage, served_model) -> None:
    async def body(cluster: Cluster) -> None:
        stop = asyncio.Event()
        async with running_gateway(cluster, served_model, name="b") as second:
            async with running_gateway(cluster, served_model, stop, name="a") as first:
                client = AsyncClient([first, second])
                expected = await undisturbed(client)
                seen = Watched(await client.submit("def f", params=PARAMS))
                await until(lambda: len(seen.ids) >= 20)
            await asyncio.wait_for(seen.task, 10)
            assert (tuple(seen.ids), seen.text) == expected
            again = await client.submit("def f", params=PARAMS)
            assert (await again.finish()).token_ids == expected[0]
            await client.close()

    stage(body)


def test_a_reader_that_takes_nothing_is_cut_while_others_flow(stage, served_model) -> None:
    async def body(cluster: Cluster) -> None:
        settings = {"client_silence_s": 1.0, "max_client_backlog_kib": 8}
        async with (
            running_gateway(cluster, served_model, **settings) as address,
            AsyncClient(address) as client,
        ):
            slow = Client(cluster.context, address)
            try:
                await read_slowly(cluster, client, slow)
            finally:
                slow.close()

    async def read_slowly(cluster: Cluster, client: AsyncClient, slow: Client) -> None:
        await slow.submit(max_tokens=250)
        seen = [Watched(await client.submit("def f", params=PARAMS)) for _ in range(3)]
        for each in seen:
            await asyncio.wait_for(each.task, 10)
            assert len(each.ids) == NUM_TOKENS
        await until(lambda: len(cluster.ends) == 4)
        assert [end.reason for end in cluster.ends].count("cancelled") == 1
        accepted = await slow.hear()
        assert accepted["silence_s"] == 1.0
        await slow.say({"type": "ClientPing", "label": "p"})
        num_tokens = 0
        while (message := await slow.hear())["type"] == "Output":
            num_tokens += len(message["token_ids"])
        assert message["type"] == "ClientPong"
        assert 10 < num_tokens < 40, "the stream paused where nothing was acknowledged"
        fields = {"request_id": accepted["request_id"], "next_index": num_tokens}
        await slow.say({"type": "Resume", **fields})
        while (message := await slow.hear())["type"] != "Done":
            num_tokens += len(message.get("token_ids", ()))
            await slow.received(accepted, num_tokens)
        assert message["usage"]["num_output_tokens"] == num_tokens < 250
        assert "said nothing for 1 s" in message["message"]

    stage(body)


def test_a_client_that_comes_back_too_late_learns_why(stage, served_model) -> None:
    async def body(cluster: Cluster) -> None:
        async with (
            running_gateway(cluster, served_model, client_silence_s=1.0) as address,
            relayed(address) as (relay, front),
            AsyncClient(front) as client,
        ):
            cluster.pause.set()
            stream = await client.submit("def f", params=PARAMS)
            relay.is_open = False
            relay.cut()
            await until(lambda: [end.reason for end in cluster.ends] == ["cancelled"])
            relay.is_open = True
            with pytest.raises(RequestCancelledError, match="said nothing for 1 s"):
                await asyncio.wait_for(stream.finish(), 10)

    stage(body)


def test_tenants_are_refused_before_anything_is_done(stage, served_model, tmp_path: Path) -> None:
    path = tmp_path / "tenants.toml"
    path.write_text("[tenants.default]\nrequests_per_s = 0.5\nburst = 2\n")

    async def body(cluster: Cluster) -> None:
        async with (
            running_gateway(cluster, served_model, tenants=str(path)) as address,
            AsyncClient(address) as client,
        ):
            await client.ping()
            for _ in range(2):
                await (await client.submit("def f", params=SamplingParams(max_tokens=1))).finish()
            started = time.monotonic()
            with pytest.raises(RateLimitedError) as caught:
                await client.submit("x" * 1_000_000, params=SamplingParams(max_tokens=1))
            assert time.monotonic() - started < 0.2
            assert 0 < (caught.value.retry_after_s or 0) <= 2.0
            path.write_text("[tenants.default]\nmax_live = 1\n")
            cluster.pause.set()
            await until_accepted(client)
            with pytest.raises(OverloadedError, match="may have 1"):
                await client.submit("def f", params=PARAMS)
            cluster.pause.clear()

    async def until_accepted(client: AsyncClient) -> None:
        for _ in range(500):
            with contextlib.suppress(RateLimitedError):
                await client.submit("def f", params=PARAMS)
                return
            await asyncio.sleep(0.02)
        raise AssertionError("the new file is not taken")

    stage(body)
