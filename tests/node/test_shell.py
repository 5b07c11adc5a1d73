"""What the I/O thread lets through to the step loop."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from node.core import FromPeer
from node.membership import Membership
from node.shell import NodeShell
from tandem.frames import Blob
from tandem.messages.handoff import Drained, Reserve
from tests.node.test_membership import HELLO, LOAD

WRITER = b"node/p0/1"
RESERVE = Reserve(
    request_id=bytes(16),
    attempt=1,
    gateway=b"gateway/g/1",
    owner_incarnation=5,
    num_tokens=10,
    max_total_tokens=20,
    sequence=1,
    deadline_s=None,
    page_hashes=Blob(),
)
DRAINED = Drained(request_id=bytes(16), attempt=1)


class Surroundings:
    """A server, a coordinator's link, owners, an exchange and a step loop in one."""

    is_idle = True

    def __init__(self) -> None:
        self.arrived: asyncio.Queue[tuple[bytes, Any]] = asyncio.Queue()
        self.offered: asyncio.Queue[Any] = asyncio.Queue()
        self.admitted: set[bytes] = set()

    async def receive(self) -> tuple[bytes, Any]:
        return await self.arrived.get()

    async def messages(self) -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield

    def send(self, *message: Any) -> bool:
        return True

    def is_admitted(self, writer: bytes) -> bool:
        return writer in self.admitted

    def offer(self, event: Any) -> bool:
        self.offered.put_nowait(event)
        return True

    def load(self) -> Any:
        return LOAD

    def links(self) -> tuple[Any, ...]:
        return ()

    def close_all(self) -> None:
        """There are no links."""


def test_only_a_writer_whose_transport_was_confirmed_may_reserve() -> None:
    """The proof that its pages are free of it depends on how it writes them."""

    async def scenario() -> None:
        world: Any = Surroundings()
        shell = NodeShell(
            world,
            world,
            membership=Membership(HELLO),
            owners=world,
            exchange=world,
            drain_s=1.0,
        )
        shell.attach(world)
        running = asyncio.create_task(shell.run(asyncio.Event()))
        for message in (RESERVE, DRAINED):
            world.arrived.put_nowait((WRITER, message))
        assert await asyncio.wait_for(world.offered.get(), 5) == FromPeer(WRITER, DRAINED)
        assert shell.num_unwelcome == 1
        world.admitted.add(WRITER)
        world.arrived.put_nowait((WRITER, RESERVE))
        assert await asyncio.wait_for(world.offered.get(), 5) == FromPeer(WRITER, RESERVE)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(scenario())
