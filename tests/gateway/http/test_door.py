"""The door around small handlers, over real sockets: streams, errors, limits."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from starlette.requests import Request
from starlette.responses import Response

from gateway.http.body import read_body
from gateway.http.call import CallLimits, call_of
from gateway.http.door import Door
from gateway.http.errors import ApiError
from gateway.http.listener import HttpListener, ListenerSettings
from gateway.http.protocol import ConnectionLimits
from gateway.http.responses import json_response
from gateway.http.routes import Route
from gateway.http.sse import SseResponse
from tests.gateway.deployment import until
from tests.gateway.http.running import Answer, parse, request, to_json

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Site:
    """A door on a free port; `opened` and `ended` count streams."""

    def __init__(self) -> None:
        self.port = 0
        self.go = asyncio.Event()
        self.calls: list = []
        self.ended: list[str] = []
        self.num_frames = 0
        self.listener: HttpListener
        self.door: Door

    @property
    def routes(self) -> list[Route]:
        handlers = {
            "stream": self.stream, "flood": self.flood, "broken": self.broken, "fail": self.fail,
            "wait": self.wait, "echo": self.echo, "torn": self.torn, "busy": self.busy,
        }  # fmt: skip
        return [
            Route(
                method="POST" if name == "echo" else "GET",
                path=f"/{name}",
                handler=handler,
                summary=name,
                request=dict[str, str] if name == "echo" else None,
            )
            for name, handler in handlers.items()
        ]

    def _answer(self, frames: AsyncIterator[bytes], name: str) -> Response:
        return SseResponse(frames, on_end=lambda: self.ended.append(name))

    async def stream(self, request: Request) -> Response:
        async def frames() -> AsyncIterator[bytes]:
            yield b"data: 1\n\n"
            await self.go.wait()
            yield b"data: 2\n\n"

        return self._answer(frames(), "stream")

    async def flood(self, request: Request) -> Response:
        async def frames() -> AsyncIterator[bytes]:
            while True:
                self.num_frames += 1
                yield b"data: " + b"x" * 1000 + b"\n\n"
                if self.num_frames % 50 == 0:
                    await asyncio.sleep(0)

        return self._answer(frames(), "flood")

    async def torn(self, request: Request) -> Response:
        async def frames() -> AsyncIterator[bytes]:
            yield b"data: 1\n\n"
            raise RuntimeError("secret inside")

        return self._answer(frames(), "torn")

    async def broken(self, request: Request) -> Response:
        raise RuntimeError("secret inside")

    async def fail(self, request: Request) -> Response:
        raise ApiError(503, "no node", retry_after_s=1.2)

    async def busy(self, request: Request) -> Response:
        raise ApiError(429, "later")

    async def wait(self, request: Request) -> Response:
        self.calls.append(call_of(request))
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.ended.append("wait")
            raise
        return json_response({"parent": call_of(request).traceparent})

    async def echo(self, request: Request) -> Response:
        return json_response(await read_body(request, dict[str, str]))

    async def until_ended(self, name: str) -> None:
        await until(lambda: self.ended[-1:] == [name])

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self, path: str, body: object = None, **headers: str) -> Answer:
        reader, writer = await self.connect()
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        data = b"" if body is None else to_json(body)
        writer.write(request("GET" if body is None else "POST", path, data, given))
        (answer,) = parse(await reader.read())
        writer.close()
        return answer


Body = Callable[[Site], Awaitable[None]]


@pytest.fixture
def run_site() -> Callable[..., None]:
    """Run a test body beside a door with these limits."""

    def run(body: Body, *, stuck_s: float = 5.0, max_bodies_bytes: int = 1 << 20,
            **limits: float) -> None:  # fmt: skip
        async def main() -> None:
            site = Site()
            site.door = Door(
                site.routes,
                keys=None,
                limits=CallLimits(**limits),
                max_bodies_bytes=max_bodies_bytes,
            )
            settings = ListenerSettings(
                host="127.0.0.1", port=0, limits=ConnectionLimits(stuck_s=stuck_s)
            )
            site.listener = HttpListener(site.door, settings)
            site.port = int((await site.listener.start()).rsplit(":", 1)[1])
            try:
                await body(site)
                await until(lambda: site.door.num_calls == 0)
            finally:
                site.go.set()
                await site.listener.close()
                site.door.close()

        asyncio.run(main())

    return run


def test_a_silent_stream_has_comments(run_site) -> None:
    async def body(site: Site) -> None:
        reader, writer = await site.connect()
        writer.write(request("GET", "/stream"))
        text = b""
        while text.count(b": keep-alive\n\n") < 3:
            text += await reader.read(1000)
        assert text.count(b"data: 1\n\n") == 1
        site.go.set()
        text = await reader.read()
        assert text.endswith(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")
        writer.close()
        assert site.ended == ["stream"]

    run_site(body, silence_s=0.05)


def test_who_does_not_read_is_cut_and_costs_little(run_site) -> None:
    async def body(site: Site) -> None:
        with socket.socket() as stuck:
            stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stuck.setblocking(False)
            await asyncio.get_running_loop().sock_connect(stuck, ("127.0.0.1", site.port))
            stuck.sendall(request("GET", "/flood"))
            await until(lambda: site.ended == ["flood"])
        # The kernel's buffer, and ours: a caller cannot make it more.
        assert site.num_frames * 1000 < 2 << 20
        assert site.listener.num_connections == 0

    run_site(body, stuck_s=0.3)


def test_a_stream_ends_with_its_caller(run_site) -> None:
    async def body(site: Site) -> None:
        for path in ("/stream", "/flood", "/wait"):
            reader, writer = await site.connect()
            writer.write(request("GET", path))
            if path != "/wait":
                await reader.readuntil(b"data: ")
            else:
                await until(lambda: len(site.calls) == 1)
            writer.transport.abort()
            await site.until_ended(path[1:])
        assert site.ended == ["stream", "flood", "wait"]

    run_site(body)


def test_what_breaks_is_told_without_its_insides(run_site, caplog) -> None:
    async def body(site: Site) -> None:
        answer = await site.ask("/broken", X_Request_Id="call-7")
        assert (answer.status, answer.error["type"]) == (500, "server_error")
        assert "secret" not in answer.body.decode()
        assert "call-7" in answer.error["message"]
        reader, writer = await site.connect()
        writer.write(request("GET", "/torn"))
        text = await reader.read()
        assert b"data: 1" in text
        assert not text.endswith(b"0\r\n\r\n"), "the end of a torn stream must not look like one"
        assert b"secret" not in text
        writer.close()
        assert site.ended == ["torn"]

    run_site(body)
    assert "secret inside" in caplog.text


def test_overload_says_when_to_come_back(run_site) -> None:
    async def body(site: Site) -> None:
        answer = await site.ask("/fail")
        assert (answer.status, answer.headers["retry-after"]) == (503, "2")
        assert answer.headers["x-should-retry"] == "true"
        answer = await site.ask("/busy")
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")

    run_site(body)


def test_trace_parents_are_passed_on_where_they_are_some(run_site) -> None:
    async def body(site: Site) -> None:
        site.go.set()
        zero = PARENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32)
        for given, taken in (
            (PARENT, PARENT), ("", None), ("x", None), (zero, None), ("ff" + PARENT[2:], None),
            (PARENT.upper(), None), (PARENT + "-x", None),
        ):  # fmt: skip
            assert (await site.ask("/wait", traceparent=given)).json == {"parent": taken}

    run_site(body)


def test_bodies_in_flight_have_a_limit_together(run_site) -> None:
    async def body(site: Site) -> None:
        large = {"a": "x" * 60_000}
        half = to_json(large)
        head = request("POST", "/echo", half)[: -len(half)]
        reader, writer = await site.connect()
        writer.write(head + half[:50_000])
        await until(lambda: site.door.num_calls == 1)
        await asyncio.sleep(0)
        await until(lambda: site.door.held_bytes == 50_000)
        refused = await site.ask("/echo", large)
        assert (refused.status, refused.error["code"]) == (429, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        writer.write(half[50_000:])
        assert parse(await reader.read())[0].json == large
        writer.close()
        assert (await site.ask("/echo", large)).status == 200
        assert site.door.held_bytes == 0

    run_site(body, max_bodies_bytes=100_000)


def test_large_bodies_are_read_beside_the_streams(run_site) -> None:
    async def body(site: Site) -> None:
        large = {"a": "x" * 400_000}
        assert (await site.ask("/echo", large)).json == large
        wrong = await site.ask("/echo", {"a": "x" * 400_000, "b": 5})
        assert (wrong.status, len(wrong.body) < 1000) == (400, True)

    run_site(body, max_bodies_bytes=1 << 20)


def test_bodies_are_json_by_their_type(run_site) -> None:
    async def body(site: Site) -> None:
        for kind, status in (
            ("application/json", 200), ("application/json; charset=utf-8", 200),
            ("application/vnd.x+json", 200), ("text/plain", 415), ("multipart/form-data", 415),
            ("application/jsonp", 415),
        ):  # fmt: skip
            assert (await site.ask("/echo", {"a": "b"}, content_type=kind)).status == status

    run_site(body)


def test_a_taken_port_is_said_to_be_taken(run_site) -> None:
    async def body(site: Site) -> None:
        second = HttpListener(site.door, ListenerSettings(host="127.0.0.1", port=site.port))
        with pytest.raises(ValueError, match="--http-port"):
            await second.start()
        settings = ListenerSettings(host="127.0.0.1", port=0, tls_cert="no/such.pem")
        with pytest.raises(ValueError, match=r"--http-tls-cert no/such\.pem"):
            await HttpListener(site.door, settings).start()

    run_site(body)


def test_closing_hangs_up_on_everybody(run_site) -> None:
    async def body(site: Site) -> None:
        reader, writer = await site.connect()
        writer.write(request("GET", "/stream"))
        await reader.readuntil(b"data: 1")
        idle, other = await site.connect()
        await site.listener.close()
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(reader.read(), 5)
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(idle.read(), 5) == b""
        assert site.ended == ["stream"]
        for each in (writer, other):
            each.close()

    run_site(body)


def test_errors_are_json(run_site) -> None:
    async def body(site: Site) -> None:
        answer = await site.ask("/nothing")
        assert answer.headers["content-type"] == "application/json"
        assert set(json.loads(answer.body)["error"]) == {"message", "type", "param", "code"}

    run_site(body)
