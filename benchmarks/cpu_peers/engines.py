"""Engines that answer tasks: workers in a process, servers over HTTP, Tandem over ZeroMQ."""

import asyncio
import contextlib
import importlib.metadata
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import aiohttp

from benchmarks.cpu_peers.processes import EngineProcess, PeerError, memory_mb
from benchmarks.cpu_peers.workers.channel import Answer, Request
from tandem.async_client import AsyncClient
from tandem.errors import TandemError
from tandem.launch import ClusterError, LocalCluster
from tandem.sampling import SamplingParams

START_S, ANSWER_S, READY_POLL_S = 300.0, 400.0, 0.2
LONGEST_LINE_BYTES = 1 << 20


class Engine(Protocol):
    """One that is ready. `answer` raises PeerError."""

    version: str

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Submit all at once, wait for all."""

    def memory_mb(self) -> float:
        """Of all its processes."""

    def rest(self) -> bool:
        """Take no time of the cores until `wake`; False: it cannot, so start another one later."""

    def wake(self) -> None:
        """Go on."""

    def close(self) -> None:
        """End it."""


class Worker:
    """An engine in the process of one of the scripts in `workers`."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self._process = EngineProcess(command, env, log, is_worker=True)
        self.memory_mb, self.close = self._process.memory_mb, self._process.close
        self.rest, self.wake = self._process.freeze, self._process.wake
        try:
            self.version: str = json.loads(self._process.read(START_S))["version"]
        except BaseException:
            self.close()
            raise

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """See Engine."""
        self._process.write(json.dumps([asdict(each) for each in requests]))
        return [Answer(**each) for each in json.loads(self._process.read(ANSWER_S))]


class Server:
    """An engine behind a port of this host; `body` and `ids_of` know its API."""

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        log: Path,
        *,
        url: str,
        path: str,
        version: str,
        body: Callable[[Request], dict[str, object]],
        ids_of: Callable[[dict[str, Any]], list[int]],
    ) -> None:
        self.version = version
        self._url, self._path, self._body, self._ids_of = url, path, body, ids_of
        self._process = EngineProcess(command, env, log, is_worker=False)
        self.memory_mb, self.close = self._process.memory_mb, self._process.close
        self.rest, self.wake = self._process.freeze, self._process.wake
        try:
            asyncio.run(self._wait_until_ready())
        except BaseException:
            self.close()
            raise

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """See Engine."""
        return asyncio.run(self._answer(requests))

    async def _answer(self, requests: Sequence[Request]) -> list[Answer]:
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=ANSWER_S),
            read_bufsize=LONGEST_LINE_BYTES,
        )
        try:
            async with session:
                began = time.perf_counter()
                sent = (self._stream(session, each, began) for each in requests)
                return await asyncio.gather(*sent)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            text = f"{type(error).__name__}: {error}"
            raise PeerError(f"{text}; {self._process.last_words()}") from None

    async def _stream(
        self, session: aiohttp.ClientSession, request: Request, began: float
    ) -> Answer:
        times: list[float] = []
        token_ids: list[int] = []
        async with session.post(self._url + self._path, json=self._body(request)) as answer:
            if answer.status != 200:
                raise PeerError(f"HTTP {answer.status}: {(await answer.text())[:300]}")
            async for line in answer.content:
                data = line[5:].strip() if line.startswith(b"data:") else b""
                if data and data != b"[DONE]" and (ids := self._ids_of(json.loads(data))):
                    times.append(time.perf_counter() - began)
                    token_ids += ids
        if not times:
            raise PeerError("a stream had no tokens")
        return Answer(times[0], times[-1], token_ids)

    async def _wait_until_ready(self) -> None:
        give_up_at = time.monotonic() + START_S
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5.0)) as session:
            while self._process.is_running and time.monotonic() < give_up_at:
                with contextlib.suppress(aiohttp.ClientError, OSError):
                    async with session.get(f"{self._url}/health") as answer:
                        if answer.status == 200:
                            return
                await asyncio.sleep(READY_POLL_S)
        raise PeerError(f"it does not start: {self._process.last_words()}")


class Tandem:
    """Processes as `tandem up` starts them: coordinator, gateway, nodes; asked through a client."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.version = importlib.metadata.version("tandem-serve")
        self._cluster = cluster
        try:
            cluster.start()
        except ClusterError as error:
            raise PeerError(str(error).replace("\n", " | ")[-600:]) from None

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """See Engine."""
        try:
            return asyncio.run(asyncio.wait_for(self._answer(requests), ANSWER_S))
        except (TandemError, TimeoutError) as error:
            raise PeerError(f"{type(error).__name__}: {error}") from None

    async def _answer(self, requests: Sequence[Request]) -> list[Answer]:
        async with AsyncClient(self._cluster.gateway_address) as client:
            await client.wait_until_ready(START_S)
            began = time.perf_counter()
            return await asyncio.gather(*(_ask(client, each, began) for each in requests))

    def memory_mb(self) -> float:
        """See Engine."""
        return memory_mb([each.pid for each in self._cluster.processes.values()])

    def rest(self) -> bool:
        """Frozen processes would be taken for dead by each other."""
        return False

    def wake(self) -> None:
        """It never rests."""

    def close(self) -> None:
        """See Engine."""
        self._cluster.stop()


async def _ask(client: AsyncClient, request: Request, began: float) -> Answer:
    params = SamplingParams(temperature=0.0, max_tokens=request.num_tokens, ignore_eos=True)
    times: list[float] = []
    token_ids: list[int] = []
    async with await client.submit(prompt_ids=request.prompt_ids, params=params) as stream:
        async for chunk in stream:
            times.append(time.perf_counter() - began)
            token_ids += chunk.token_ids
        _ = stream.result
    return Answer(times[0], times[-1], token_ids)
