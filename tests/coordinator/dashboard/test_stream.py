"""The stream of snapshots: each second, to each caller its own events, to few who keep up."""

import asyncio
import json

import pytest

from coordinator.dashboard import streaming


def test_each_second_with_the_events_since_the_last(open_site) -> None:
    async def run() -> None:
        async with open_site() as site:
            reading = asyncio.create_task(site.events(3))
            await asyncio.sleep(0.3)
            site.cluster.join("d7", "decode")
            first, second, third = await asyncio.wait_for(reading, 20)
            assert [event.number for event in first.events] == [1, 2, 3, 4]
            assert [event.text[:14] for event in second.events] == ["node d7 joined"]
            assert third.events == ()
            assert third.unix_s - second.unix_s > 0.5
            assert {node.node_id for node in third.nodes} == {"p0", "d0", "d7"}
            late = (await site.events(1))[0]
            assert [event.number for event in late.events] == [1, 2, 3, 4, 5]

    asyncio.run(run())


def test_the_first_has_the_last_hundred_events(open_site) -> None:
    async def run() -> None:
        async with open_site() as site:
            for number in range(300):
                site.dashboard._observer.say("member", f"event {number}", 1.0)
            first = (await site.events(1))[0]
            assert len(first.events) == 100
            assert first.events[-1].text == "event 299"

    asyncio.run(run())


def test_streams_are_few_and_end_with_their_callers(
    open_site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "MAX_STREAMS", 2)

    async def run() -> None:
        async with open_site() as site:
            readers = [asyncio.create_task(site.events(100)) for _ in range(2)]
            await site.until(lambda: site.dashboard.streams.num_open == 2)
            refused = await site.client.get("/api/stream")
            assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
            assert "watch already" in refused.json()["error"]["message"]
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)
            await site.until(lambda: site.dashboard.streams.num_open == 0)
            assert len(await site.events(1)) == 1

    asyncio.run(run())


def test_a_caller_that_reads_nothing_is_cut(open_site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "SLOW_S", 0.3)

    async def run() -> None:
        async with open_site() as site:
            for number in range(60):  # a snapshot of some size
                site.cluster.join(f"n{number}", "decode")
            streams = site.dashboard.streams
            host, port = site.dashboard.address.removeprefix("http://").split(":")
            _, writer = await asyncio.open_connection(host, int(port), limit=1024)
            writer.write(f"GET /api/stream HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            await site.until(lambda: streams.num_open == 1)

            def is_cut() -> bool:
                streams.tick()  # more often than each second
                return streams.num_open == 0

            await site.until(is_cut, 20.0)
            writer.close()
            assert (await site.client.get("/health")).status_code == 200
            assert json.loads((await site.client.get("/api/snapshot")).content)["version"] == 1

    asyncio.run(run())
