"""Keys that change or go while connections are up."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tandem.keys import KeyFolder
from tandem.messages.client import ClientPing, ClientPong
from tandem.sockets import Link, Server
from tests.tandem.keyed_world import PONG, World, is_gone, make_folder, run, until


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path)


async def echo(server: Server[Any], served: list[str]) -> None:
    while True:
        peer, message = await server.receive()
        if isinstance(message, ClientPing):
            served.append(message.label)
            server.send(
                peer, ClientPong(label=message.label, model="", ready=True, max_model_len=1)
            )


async def ask_until_answered(link: Link[Any], label: str, answered: set[str]) -> None:
    """As the protocols do: resend until there is an answer."""
    while label not in answered:
        link.send(ClientPing(label=label))
        await asyncio.sleep(0.05)


async def listen(link: Link[Any], answered: set[str]) -> None:
    async for message in link.messages():
        answered.add(message.label)


def test_rotation_under_traffic_loses_nothing(folder: Path) -> None:
    """Both sides change their keys, while questions go on, and no old key is used at the end."""

    async def scenario(w: World) -> None:
        link, answered, served = w.link("client", "alice"), set(), []
        background = [
            asyncio.create_task(echo(w.server, served)),
            asyncio.create_task(listen(link, answered)),
        ]
        keys = KeyFolder(folder)
        longest = 0.0
        clock = asyncio.get_running_loop().time
        for number in range(160):
            if number == 40:
                keys.rotate("gateway", "g")
            if number == 80:
                keys.rotate("client", "alice")
            if number == 120:
                keys.rotate("gateway", "g", grace_s=0)
                keys.rotate("client", "alice", grace_s=0)
            started = clock()
            await ask_until_answered(link, str(number), answered)
            longest = max(longest, clock() - started)
        assert len(answered) == 160 == len(set(served))
        assert longest < 4.0
        await asyncio.sleep(1.1)  # the grace is over: whoever used an old key is cut off
        await ask_until_answered(link, "last", answered)
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)

    run(folder, scenario)


def test_a_removed_key_is_cut_off_while_connected(folder: Path) -> None:
    async def scenario(w: World) -> None:
        link = w.link("client", "alice")
        link.send(ClientPing(label="1"))
        assert (await w.server.receive())[0] == b"client/alice/1"
        KeyFolder(folder).remove("client", "alice")
        reading = asyncio.create_task(w.server.receive())
        async with asyncio.timeout(5):
            while not w.server.num_unauthorized:
                link.send(ClientPing(label="2"))
                await asyncio.sleep(0.05)
                if reading.done():  # within the second before the folder is read again
                    reading = asyncio.create_task(w.server.receive())
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await w.canary()

    run(folder, scenario)


def test_a_removed_key_is_told_nothing_more(folder: Path) -> None:
    async def scenario(w: World) -> None:
        link = w.link("client", "alice")
        link.send(ClientPing(label="1"))
        assert (await w.server.receive())[0] == b"client/alice/1"
        assert w.server.send(b"client/alice/1", PONG)
        KeyFolder(folder).remove("client", "alice")
        await until(lambda: is_gone(w, b"client/alice/1"), 1.5)
        await w.canary()

    run(folder, scenario)


def test_a_server_whose_key_was_removed_is_heard_no_more(folder: Path) -> None:
    async def scenario(w: World) -> None:
        link = w.link("client", "alice")
        link.send(ClientPing(label="1"))
        await w.server.receive()
        breaks = link.disconnections()
        waiting = asyncio.ensure_future(anext(breaks))
        path = KeyFolder(folder).public_path("gateway", "g")
        known = path.read_text()
        path.unlink()
        async with asyncio.timeout(5):
            await waiting
        hearing = asyncio.ensure_future(anext(link.messages()))
        path.write_text(known)  # it is dialled again once it has a key
        link.send(ClientPing(label="2"))
        async with asyncio.timeout(10):
            assert (await w.server.receive())[1] == ClientPing(label="2")
            w.server.send(b"client/alice/1", PONG)
            assert await hearing == PONG

    run(folder, scenario)
