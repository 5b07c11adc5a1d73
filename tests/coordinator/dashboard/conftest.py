"""A coordinator core that an observer watches, under a clock of its own."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec
import pytest

from coordinator.dashboard.observer import Observer
from coordinator.dashboard.shell import Dashboard
from coordinator.metrics import CoordinatorMetrics
from coordinator.server import Desk
from tandem.messages.common import SlaTargets, Timeline
from tandem.messages.operations import RequestRecord, Snapshot

MIDNIGHT = 1_800_000_000.0  # a multiple of all steps
TARGETS = SlaTargets(sla_class="standard", ttft_ms=2000, tpot_ms=100)


class Watched:
    """The core, whose every call the observer is told of, as the shell does."""

    def __init__(self, world: "World", core) -> None:
        self._world, self._core = world, core

    def __getattr__(self, name: str):
        return getattr(self._core, name)

    def handle(self, peer: bytes, message, now: float):
        actions = self._core.handle(peer, message, now)
        self._world.observer.handled(message, actions, now, self._world.unix_s)
        return actions

    def tick(self, now: float):
        actions = self._core.tick(now)
        self._world.observer.ticked(actions, now, self._world.unix_s)
        return actions


@dataclass
class World:
    """`cluster` speaks to the core; `unix_s` is the wall clock."""

    cluster: Any  # of ../conftest.py
    observer: Observer = field(init=False)
    offset_s: float = MIDNIGHT

    def __post_init__(self) -> None:
        core = self.cluster.core
        self.offset_s -= self.cluster.now
        self.observer = Observer(core, CoordinatorMetrics(core))
        self.cluster.core = Watched(self, core)

    @property
    def unix_s(self) -> float:
        return self.cluster.now + self.offset_s

    def seconds(self, num: int = 1) -> None:
        """Time passes, with a sample each second; nodes that joined send heartbeats."""
        for _ in range(num):
            self.cluster.pass_time(1.0)
            self.observer.second(self.cluster.now, self.unix_s)

    def snapshot(self) -> Snapshot:
        return self.observer.snapshot(self.cluster.now, self.unix_s, self.observer.events.after(0))

    def serve(self, number: int, **report) -> None:
        """A request is placed and ends at once."""
        self.cluster.place(number)
        targets = {"targets": TARGETS, "timeline": a_timeline(self.unix_s)}
        self.cluster.end(number, **{**targets, **report})

    def texts(self, number: int) -> list[str]:
        """The steps of a request."""
        data = self.observer.records.find(number.to_bytes(16, "big").hex())
        assert isinstance(data, bytes), data
        return [step.text for step in msgspec.json.decode(data, type=RequestRecord).steps]


def a_timeline(unix_s: float, **changes) -> Timeline:
    """A second from its receipt to its end."""
    stages = {
        "placed_s": 0.01,
        "prefill_start_s": 0.1,
        "first_token_s": 0.3,
        "transfer_end_s": 0.34,
        "decode_start_s": 0.35,
        "finished_s": 1.0,
    }
    return Timeline(received_unix_s=unix_s - 1.0, **{**stages, **changes})


@pytest.fixture
def make_timeline() -> Callable[..., Timeline]:
    return a_timeline


@pytest.fixture
def make_world(make_cluster) -> Callable[..., World]:
    """A watched coordinator with these settings, a gateway and, unless told otherwise, a pair."""

    def make(*, nodes: tuple[str, ...] = ("prefill", "decode"), **settings) -> World:
        cluster = make_cluster(lease_s=1e6, **settings)
        world = World(cluster)
        cluster.greet()
        for role in nodes:
            cluster.join(f"{role[0]}0", role)
            cluster.beat(f"{role[0]}0")
        return world

    return make


@pytest.fixture
def world(make_world) -> World:
    """A gateway, a prefill node and a decode node."""
    return make_world()


class Outbox:
    """Takes what the coordinator sends."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, object]] = []

    def send(self, peer: bytes, message: object) -> None:
        self.sent.append((peer, message))


class Fed:
    """A core whose every call the dashboard is told of, on the clock of this host."""

    def __init__(self, dashboard: Dashboard, core) -> None:
        self._dashboard, self._core = dashboard, core

    def __getattr__(self, name: str):
        return getattr(self._core, name)

    def handle(self, peer: bytes, message, now: float):
        actions = self._core.handle(peer, message, now)
        self._dashboard.handled(message, actions)
        return actions


@dataclass
class Site:
    """A dashboard on a real socket; `cluster` speaks to its core, `client` asks it."""

    cluster: Any  # of ../conftest.py
    dashboard: Dashboard
    outbox: Outbox
    client: httpx.AsyncClient

    async def until(self, is_so: Callable[[], bool], seconds: float = 20.0) -> None:
        """Wait for something to be so."""
        async with asyncio.timeout(seconds):
            while True:
                if is_so():
                    return
                await asyncio.sleep(0.01)

    async def events(self, num: int, client: httpx.AsyncClient | None = None) -> list[Snapshot]:
        """The first snapshots of a new stream."""
        found: list[Snapshot] = []
        async with (client or self.client).stream("GET", "/api/stream") as response:
            assert response.status_code == 200, await response.aread()
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = response.aiter_lines()
            while len(found) < num:
                assert await anext(lines) == "event: snapshot"
                data = (await anext(lines)).removeprefix("data: ")
                found.append(msgspec.json.decode(data, type=Snapshot))
                assert await anext(lines) == ""
        return found


@pytest.fixture
def open_site(make_cluster):
    """Serves a dashboard with these settings for as long as the block runs."""

    @contextlib.asynccontextmanager
    async def open_it(**settings) -> AsyncIterator[Site]:
        cluster = make_cluster(lease_s=1e6, dashboard_port=0, **settings)
        cluster.now = time.monotonic()
        outbox = Outbox()
        desk = Desk(cluster.core, outbox)
        dashboard = desk.dashboard = Dashboard(cluster.config, cluster.core, desk.order)
        cluster.core = Fed(dashboard, cluster.core)
        cluster.greet()
        for role in ("prefill", "decode"):
            cluster.join(f"{role[0]}0", role)
            cluster.beat(f"{role[0]}0")
        loops = [asyncio.ensure_future(each) for each in (dashboard.run(), desk.tick())]
        url = dashboard.address
        try:
            async with httpx.AsyncClient(base_url=url, timeout=20.0, verify=False) as client:
                site = Site(cluster, dashboard, outbox, client)
                await site.until(lambda: dashboard.is_serving)
                yield site
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            await dashboard.close()

    return open_it
