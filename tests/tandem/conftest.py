"""A gateway that follows a script, on real sockets in a thread; stand-ins for the processes."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq.asyncio

from tandem.codec import ProtocolError
from tandem.messages.client import (
    Accepted,
    CancelRequest,
    ClientPing,
    ClientPong,
    Done,
    Malformed,
    Output,
    Refused,
    Submit,
    ToGateway,
)
from tandem.messages.common import FinishReason, Timeline, Usage
from tandem.messages.membership import ClusterStatus, StatusQuery
from tandem.sockets import Server


class ScriptedServer:
    """Answers the messages of `union` by `handle`, which subclasses write."""

    union: Any

    def __init__(self) -> None:
        self.received: list[Any] = []
        self.address = ""
        self._is_listening = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        assert self._is_listening.wait(10)

    def handle(self, peer: bytes, message: Any) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    async def _run(self) -> None:
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        context = zmq.asyncio.Context()
        self.server: Server[Any] = Server(context, self.union)
        self.address = self.server.bind("127.0.0.1", 0)
        self._is_listening.set()
        serving = asyncio.create_task(self._serve())
        await self._stopped.wait()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        self.server.close()
        context.term()

    async def _serve(self) -> None:
        while True:
            peer, message = await self.server.receive()
            self.received.append(message)
            self.handle(peer, message)


class ScriptedGateway(ScriptedServer):
    """The prompt says what happens: `count N`, `refuse CODE`, `fail`, `hang`, `jump`, `mute`."""

    union = ToGateway

    def __init__(self) -> None:
        self.is_ready = True
        self.is_mute = False
        self.num_to_drop = 0  # of the next requests
        self.num_in_flight = 0
        self.most_in_flight = 0
        self._num_requests = 0
        super().__init__()

    def handle(self, peer: bytes, message: Any) -> None:
        if self.is_mute:
            return
        match message:
            case ProtocolError():
                self.server.send(peer, Malformed(message=str(message)))
            case ClientPing(label=label):
                pong = ClientPong(label=label, model="m", ready=self.is_ready, max_model_len=64)
                self.server.send(peer, pong)
            case CancelRequest(request_id=request_id):
                self.server.send(peer, self.done(request_id, 1, "cancelled"))
            case Submit():
                self.answer(peer, message)

    def answer(self, peer: bytes, submit: Submit) -> None:
        if self.num_to_drop:
            self.num_to_drop -= 1
            self.server.send(peer, Malformed(message="too fast", is_rate_limited=True))
            return
        words = self.prompt_of(submit).split()
        if words[0] == "mute":
            return
        if words[0] == "refuse":
            refused: Any = words[1]
            self.server.send(
                peer, Refused(label=submit.label, code=refused, message="no", retry_after_s=2.0)
            )
            return
        self._num_requests += 1
        request_id = self._num_requests.to_bytes(16, "big")
        accepted = Accepted(
            label=submit.label,
            request_id=request_id,
            seed=submit.params.seed or 7,
            model_fingerprint="f",
            num_prompt_tokens=len(words),
        )
        self.server.send(peer, accepted)
        self.num_in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.num_in_flight)
        self._loop.call_later(0.005, self.stream, peer, request_id, words)

    def stream(self, peer: bytes, request_id: bytes, words: list[str]) -> None:
        num_tokens = int(words[1]) if words[0] == "count" else 2
        for index in range(num_tokens):
            output = Output(
                request_id=request_id, index=index, token_ids=(100 + index,), text=f"{index} "
            )
            self.server.send(peer, output)
        match words[0]:
            case "count":
                self.server.send(peer, self.done(request_id, num_tokens, "stop"))
            case "fail":
                self.server.send(peer, self.done(request_id, num_tokens, "failed"))
            case "jump":
                jump = Output(request_id=request_id, index=5, token_ids=(1,), text="x")
                self.server.send(peer, jump)
        self.num_in_flight -= 1

    @staticmethod
    def prompt_of(submit: Submit) -> str:
        if submit.prompt is not None:
            return submit.prompt.data.decode()
        if submit.prompt_ids is not None:
            return f"count {len(submit.prompt_ids)}"
        return submit.chat[-1].content

    @staticmethod
    def done(request_id: bytes, num_tokens: int, reason: FinishReason) -> Done:
        failed = reason == "failed"
        return Done(
            request_id=request_id,
            reason=reason,
            usage=Usage(num_prompt_tokens=2, num_output_tokens=num_tokens),
            timeline=Timeline(
                received_unix_s=1.0, placed_s=0.001, prefill_start_s=0.002, first_token_s=0.010,
                transfer_end_s=0.012, decode_start_s=0.013, finished_s=0.050,
                prefill_node="prefill-0", decode_node="decode-0", transfer_bytes=4096,
            ),
            sla_class="standard",
            sla_attained=not failed,
            code="node_failed" if failed else None,
            message="prefill-0 died" if failed else None,
        )  # fmt: skip


@pytest.fixture
def gateway() -> Iterator[ScriptedGateway]:
    """A gateway that has nodes."""
    server = ScriptedGateway()
    yield server
    server.stop()


class AnsweringServer(ScriptedServer):
    """Answers every message by a function."""

    def __init__(self, union: Any, answer: Callable[[Any], Any]) -> None:
        self.union = union
        self._answer = answer
        super().__init__()

    def handle(self, peer: bytes, message: Any) -> None:
        self.server.send(peer, self._answer(message))


@pytest.fixture
def server_of() -> Iterator[Callable[[Any, Callable[[Any], Any]], str]]:
    """Starts a server for a union of messages and a function that answers; returns its address."""
    started: list[AnsweringServer] = []

    def start(union: Any, answer: Callable[[Any], Any]) -> str:
        started.append(AnsweringServer(union, answer))
        return started[-1].address

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def coordinator_of(
    server_of: Callable[[Any, Callable[[Any], Any]], str],
) -> Callable[[ClusterStatus], str]:
    """Starts a coordinator with a given state; returns its address."""
    return lambda status: server_of(StatusQuery, lambda message: status)


FAKE_PROCESS = """
import asyncio, os, signal, sys
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
module = "MODULE"
name = flags.get("--name", module)
behaviour = flags.get("--fake", "")
print("loading", flush=True)
print("pid", os.getpid(), flush=True)
if behaviour == "die":
    print("cannot find the tokenizer", file=sys.stderr, flush=True)
    sys.exit(3)

def drain(*unused):
    if "FAKE_EVENTS" in os.environ:
        with open(os.environ["FAKE_EVENTS"], "a") as events:
            print(name, file=events, flush=True)
    if behaviour != "stubborn":
        os._exit(0)

signal.signal(signal.SIGINT, drain)
if behaviour == "slow":
    signal.pause()
address = "tcp://127.0.0.1:" + flags["--port"]

async def serve():
    import zmq.asyncio
    from tandem.messages.client import ClientPing, ClientPong, ToGateway
    from tandem.sockets import Server
    server = Server(zmq.asyncio.Context(), ToGateway)
    server.bind("127.0.0.1", int(flags["--port"]))
    print("ready gateway", address, flush=True)
    while True:
        peer, ping = await server.receive()
        pong = ClientPong(
            label=ping.label, model="m", ready=behaviour != "lonely", max_model_len=64
        )
        server.send(peer, pong)

if module == "gateway":
    asyncio.run(serve())
print("ready", module, address, flush=True)
while True:
    signal.pause()
"""


@pytest.fixture
def fake_processes(tmp_path: Path) -> Path:
    """A folder with stand-ins for the process packages; `--fake BEHAVIOUR` makes them misbehave."""
    folder = tmp_path / "packages"
    for module in ("coordinator", "gateway", "prefill_node", "decode_node"):
        (folder / module).mkdir(parents=True)
        (folder / module / "__init__.py").touch()
        text = FAKE_PROCESS.replace("MODULE", module)
        (folder / module / "__main__.py").write_text(text)
    return folder
