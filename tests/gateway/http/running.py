"""A gateway with its HTTP door in a thread, fake nodes around it; raw sockets to talk to it."""

import asyncio
import contextlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.config import GatewayConfig
from gateway.ledger import Identity, Ledger
from gateway.served_model import ServedModel
from gateway.server import serve
from gateway.tokenize import SHORT_CHARS
from tandem.messages.common import ModelIdentity
from tandem.sampling import GenerationDefaults
from tests.gateway.deployment import Cluster, running_cluster, until
from tests.gateway.ledger_world import EOS, World, letters

TIMEOUT_S = 10.0
COMPLETION = {"prompt": "def f", "max_tokens": 2, "temperature": 0.0}


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict:
        return self.json["error"]


class HttpGateway:
    """The gateway of this thread; `run` does something on its event loop."""

    def __init__(self, model: ServedModel, settings: dict[str, Any]) -> None:
        self._model = model
        self._settings = settings
        self._is_ready = threading.Event()
        self._error: BaseException | None = None
        self.cluster: Cluster
        self.loop: asyncio.AbstractEventLoop
        self.stop: asyncio.Event
        self.port = 0
        self.is_serving = False
        self._thread = threading.Thread(target=self._run, name="gateway")

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:
            logging.getLogger(__name__).exception("the gateway of this test ended")
            self._error = error
        finally:
            self._is_ready.set()

    async def _serve(self) -> None:
        self.loop, self.stop = asyncio.get_running_loop(), asyncio.Event()
        world = World(Ledger(Identity("gw", 5, "fingerprint", (EOS,)), letters))
        for name in ("p0", "d0"):
            world.add_node(name)
        keys = self._settings.get("keys")
        path = None if keys is None else Path(keys)
        async with running_cluster(world, path, page_size=4) as self.cluster:
            settings = {"model": "", "port": 0, "http_port": 0, "name": "gw", "drain_s": 0.0}
            settings |= {"num_tokenizer_threads": 1}
            config = GatewayConfig(
                coordinator=self.cluster.address, **{**settings, **self._settings}
            )

            def listening(address: str) -> None:
                self.port = int(address.rsplit(":", 1)[1])
                self.is_serving = True
                self._is_ready.set()

            await serve(
                config,
                self._model,
                stop=self.stop,
                on_ready=lambda address: None,
                on_http=listening,
            )
            self.is_serving = False

    def __enter__(self) -> "HttpGateway":
        self._thread.start()
        assert self._is_ready.wait(20)
        if self._error is not None:
            raise self._error
        return self

    def warm_up(self, key: str | None = None) -> None:
        """Start all threads and links, which then are no test's."""
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        body = COMPLETION | {"note": "x" * (300 << 10)}  # more than is decoded at once
        body |= {"prompt": "x" * (SHORT_CHARS + 1)}  # more than is tokenised at once
        assert self.ask("POST", "/v1/completions", body, headers).status == 200
        self.until_idle()

    def __exit__(self, *exception: object) -> None:
        if self.is_serving:
            self.loop.call_soon_threadsafe(self.stop.set)
        self._thread.join(20)
        if self._error is not None:
            raise self._error

    # --- looking and acting inside ----------------------------------------------------------

    def run(self, what: Callable[[], Any]) -> Any:
        """Call on the gateway's loop."""

        async def call() -> Any:
            return what()

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(TIMEOUT_S)

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that is looked at on the gateway's loop."""
        asyncio.run_coroutine_threadsafe(until(condition), self.loop).result(20)

    def until_there(self, condition: Callable[[], bool]) -> None:
        """Wait for something that callers see."""
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, "it does not happen within 20 s"
            time.sleep(0.05)

    def until_idle(self) -> None:
        """Nodes hold nothing, and no caller is served."""
        self.until(lambda: not any(node.specs for node in self.cluster.world.nodes.values()))
        self.until(lambda: num_serving() == 0)

    def holdings(self) -> int:
        """Tasks of the gateway's loop, and descriptors of this process."""
        return len(asyncio.all_tasks()) + len(os.listdir("/proc/self/fd"))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """No node makes tokens meanwhile."""
        self.run(self.cluster.pause.set)
        try:
            yield
        finally:
            self.run(self.cluster.pause.clear)

    # --- talking to it ----------------------------------------------------------------------

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT_S)

    def raw(self, data: bytes) -> list[Answer]:
        """All that comes back until the connection ends."""
        with self.connect() as connection:
            with contextlib.suppress(ConnectionError):  # it may answer before all is sent
                connection.sendall(data)
            return parse(read_all(connection))

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """One call; `body` is sent as JSON unless it is bytes already."""
        data = body if isinstance(body, bytes) else b"" if body is None else to_json(body)
        (answer,) = self.raw(request(method, path, data, headers or {}))
        return answer

    def post(self, path: str, body: object, **headers: str) -> Answer:
        return self.ask("POST", path, body, {k.replace("_", "-"): v for k, v in headers.items()})

    def canary(self) -> None:
        """A healthy request is served."""
        answer = self.post("/v1/completions", COMPLETION)
        assert answer.status == 200, answer
        assert answer.json["usage"]["completion_tokens"] == 2


def num_serving() -> int:
    """Tasks of the running loop that serve calls."""
    return sum("run_asgi" in repr(task) for task in asyncio.all_tasks())


def to_json(body: object) -> bytes:
    return json.dumps(body).encode()


def request(method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None,
            *, keep: bool = False) -> bytes:  # fmt: skip
    lines = {"host": "x", "connection": "keep-alive" if keep else "close"}
    if body or method == "POST":
        lines |= {"content-type": "application/json", "content-length": str(len(body))}
    lines |= {name.lower(): value for name, value in (headers or {}).items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value)
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


def read_all(connection: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionError):
        while chunk := connection.recv(1 << 16):
            data += chunk
    return data


def read_until(connection: socket.socket, what: bytes) -> bytes:
    data = b""
    while what not in data:
        chunk = connection.recv(1 << 16)
        assert chunk, data
        data += chunk
    return data


def parse(data: bytes) -> list[Answer]:
    """Answers one after the other, interim ones left out."""
    answers = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        status = int(first.split()[1])
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        if status == 100:
            continue
        if headers.get("transfer-encoding") == "chunked":
            body, data = dechunk(data)
        else:
            length = int(headers.get("content-length", 0))
            body, data = data[:length], data[length:]
        answers.append(Answer(status, headers, body))
    return answers


def dechunk(data: bytes) -> tuple[bytes, bytes]:
    body = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        body, data = body + data[:length], data[length + 2 :]
        if length == 0:
            break
    return body, data


def frames(body: bytes) -> list[Any]:
    """The values of an event stream, `[DONE]` as text."""
    lines = [line.removeprefix("data: ") for line in body.decode().split("\n\n") if line]
    return [line if line == "[DONE]" or line[0] == ":" else json.loads(line) for line in lines]


def make_model(tokenizer: Any) -> ServedModel:
    identity = ModelIdentity(
        served_name="demo",
        weights_fingerprint="w",
        tokenizer_fingerprint="t",
        dtype="",
        max_model_len=4096,
        vocab_size=4096,
    )
    return ServedModel(identity, GenerationDefaults(eos_token_ids=(0,)), tokenizer)


def memory_bytes() -> int:
    """What this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
