"""A TCP proxy between ZeroMQ peers that stalls, slows, cuts, repeats, drops and corrupts. Asyncio.

It reads ZMTP 3 (without encryption) far enough to know where a message begins and ends, so that
whole messages are repeated or dropped, and a corrupted one still is a well-formed frame.
"""

import asyncio
import random
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

GREETING_BYTES = 64
MORE, LONG, COMMAND = 1, 2, 4
# Only pages are damaged: a control message's bits are TCP's and CURVE's business, and one that is
# altered and still sound says something else, which nobody can tell.
KV_FRAME_BYTES = 128
FIXARRAY = 0x90  # how the header of pages begins; control messages are maps
POLL_S = 0.01
Frame = tuple[int, bytes]  # flags without LONG, body


@dataclass(slots=True)
class Weather:
    """How a proxied link behaves from now on; changed by the test while traffic flows.

    `block_up`, `block_down`: nothing passes from the dialler to the listener, or back, and nobody
    is told. Rates are probabilities per message.
    """

    block_up: bool = False
    block_down: bool = False
    delay_s: float = 0.0
    bytes_per_s: float | None = None
    repeat: float = 0.0
    drop: float = 0.0
    flip: float = 0.0
    truncate: float = 0.0

    def is_blocked(self, *, is_up: bool) -> bool:
        """Whether this direction stands still."""
        return self.block_up if is_up else self.block_down


class ProxyThread:
    """Proxies on an event loop of their own thread."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._servers: dict[tuple[str, int], asyncio.Server] = {}
        self._connections: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")
        self._thread.start()
        self.num_faults = 0

    def listen(self, host: str, port: int, *, to_host: str, weather: Weather) -> None:
        """Forward `host:port` to the same port of `to_host`."""

        async def start() -> None:
            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                task = asyncio.current_task()
                assert task is not None
                self._connections.add(task)
                try:
                    await self._serve(reader, writer, to_host, port, weather)
                except asyncio.CancelledError:
                    pass  # cut: asyncio's streams log what ends a handler otherwise
                finally:
                    self._connections.discard(task)

            self._servers[host, port] = await asyncio.start_server(serve, host, port)

        self._call(start())

    def listens(self, host: str, port: int) -> bool:
        """Whether this address is proxied already."""
        return (host, port) in self._servers

    def cut(self) -> None:
        """Reset all connections; diallers come back."""

        async def cut() -> None:
            for task in list(self._connections):
                task.cancel()
            await asyncio.sleep(0)

        self._call(cut())

    def forget(self) -> None:
        """Listen nowhere any more."""

        async def stop() -> None:
            for server in self._servers.values():
                server.close()
            tasks = list(self._connections)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self._call(stop())
        self._servers.clear()

    def close(self) -> None:
        """End the thread."""
        self.forget()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(5)

    async def _serve(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        to_host: str,
        port: int,
        weather: Weather,
    ) -> None:
        writers = [writer]
        try:
            far_reader, far_writer = await asyncio.open_connection(to_host, port)
            writers.append(far_writer)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, far_writer, weather, is_up=True))
                group.create_task(self._pump(far_reader, writer, weather, is_up=False))
        except (OSError, EOFError, ExceptionGroup):
            pass  # one end hung up: so do we
        finally:
            for each in writers:
                each.transport.abort()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        weather: Weather,
        *,
        is_up: bool,
    ) -> None:
        await _pass_greeting(reader, writer)
        while True:
            message = await read_message(reader)
            while weather.is_blocked(is_up=is_up):  # noqa: ASYNC110  another thread's
                await asyncio.sleep(POLL_S)
            is_command = bool(message[0][0] & COMMAND)
            copies = [message] if is_command else self._spoil(message, weather)
            for copy in copies:
                data = b"".join(encode_frame(frame) for frame in copy)
                await asyncio.sleep(weather.delay_s)
                if weather.bytes_per_s is not None:
                    await asyncio.sleep(len(data) / weather.bytes_per_s)
                writer.write(data)
            await writer.drain()

    def _spoil(self, message: list[Frame], weather: Weather) -> list[list[Frame]]:
        """What arrives in place of one message: nothing, itself, itself twice, or damaged."""
        flags, body = message[-1]
        is_pages = len(body) >= KV_FRAME_BYTES and begins_with_array(message)
        spoilt: list[list[Frame]] = [message]
        if self._happens(weather.drop):
            spoilt = []
        elif self._happens(weather.repeat):
            spoilt = [message, message]
        elif is_pages and self._happens(weather.flip):
            position = self._rng.randrange(len(body))
            flipped = body[:position] + bytes([body[position] ^ 0x10]) + body[position + 1 :]
            spoilt = [[*message[:-1], (flags, flipped)]]
        elif is_pages and self._happens(weather.truncate):
            spoilt = [[*message[:-1], (flags, body[: len(body) // 2])]]
        self.num_faults += spoilt != [message]
        return spoilt

    def _happens(self, rate: float) -> bool:
        return rate > 0 and self._rng.random() < rate


async def _pass_greeting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Piece by piece: each end waits for the other's first bytes before it sends its last."""
    num_left = GREETING_BYTES
    while num_left:
        piece = await reader.read(num_left)
        if not piece:
            raise EOFError
        num_left -= len(piece)
        writer.write(piece)


async def read_message(reader: asyncio.StreamReader) -> list[Frame]:
    """The frames of one message, or one command. Raises EOFError at the end of the stream."""
    frames: list[Frame] = []
    while not frames or frames[-1][0] & MORE:
        flags = (await reader.readexactly(1))[0]
        size = int.from_bytes(await reader.readexactly(8 if flags & LONG else 1), "big")
        frames.append((flags & ~LONG, await reader.readexactly(size)))
    return frames


def begins_with_array(message: list[Frame]) -> bool:
    """Whether the header is that of pages."""
    return len(message) > 1 and message[1][1][:1] != b"" and message[1][1][0] & 0xF0 == FIXARRAY


def encode_frame(frame: Frame) -> bytes:
    """One frame as it goes over the wire."""
    flags, body = frame
    if len(body) > 255:
        return bytes([flags | LONG]) + len(body).to_bytes(8, "big") + body
    return bytes([flags, len(body)]) + body
