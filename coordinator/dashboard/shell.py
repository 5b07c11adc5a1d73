"""The dashboard beside the coordinator, in its loop: it observes, keeps a history, serves HTTP.

Whatever goes wrong here is logged, and costs no request anything.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from starlette.responses import Response

from coordinator.actions import Action
from coordinator.config import CoordinatorConfig
from coordinator.core import GRACE_S, Coordinator
from coordinator.dashboard.access import Access
from coordinator.dashboard.door import make_app
from coordinator.dashboard.history import History
from coordinator.dashboard.listening import HttpServer
from coordinator.dashboard.observer import Observer
from coordinator.dashboard.streaming import NUM_FIRST_EVENTS, Streams
from coordinator.metrics import CoordinatorMetrics
from tandem.exposition import CONTENT_TYPE, render
from tandem.messages.membership import DrainAnswer, DrainMember, SetWeights, WeightsAnswer
from tandem.messages.operations import Series
from tandem.sockets import require_loopback

SECOND_S = 1.0
STALE_S = 3.0  # without a tick of the core's, which come five times per second
NO_EVENTS = b'"events":[]}'
Order = Callable[[DrainMember | SetWeights], DrainAnswer | WeightsAnswer]
logger = logging.getLogger(__name__)


class Dashboard:
    """See the module. `order` gives the coordinator an operator's order."""

    def __init__(self, config: CoordinatorConfig, core: Coordinator, order: Order) -> None:
        """Listens; `run` serves. Raises ValueError for bad config."""
        if config.keys is None and not config.allow_unauthenticated:
            require_loopback(config.dashboard_host)
        access = Access(config.keys, host=config.dashboard_host)
        self._core = core
        self._order = order
        self._metrics = CoordinatorMetrics(core, with_vllm_names=config.vllm_metrics)
        self._observer = Observer(core, self._metrics)
        self.streams = Streams(self.snapshot_json)
        self._encoded: tuple[float, bytes] | None = None
        self._ticked_at = time.monotonic()
        self.is_serving = False
        self._history = None if config.history is None else History(Path(config.history))
        try:
            self._server = HttpServer(
                make_app(self, access), host=config.dashboard_host, port=config.dashboard_port
            )
        except ValueError:
            if self._history is not None:
                self._history.close()
            raise
        if self._history is not None:
            self._observer.restore(self._history.take_kept())
        text = f"the coordinator starts, as incarnation {core.members.incarnation}"
        self._observer.say("member", text, time.time())

    @property
    def address(self) -> str:
        """`http://host:port`."""
        return self._server.address

    # --- what the coordinator does ----------------------------------------------------------

    def handled(self, message: object, actions: Sequence[Action]) -> None:
        """A message came, and led to these actions."""
        try:
            self._observer.handled(message, actions, time.monotonic(), time.time())
        except Exception:  # nobody's service ends for what operators see of it
            logger.exception("the dashboard missed a %s", type(message).__name__)

    def ticked(self, actions: Sequence[Action]) -> None:
        """The core looked at the time, and did this."""
        self._ticked_at = time.monotonic()
        try:
            self._observer.ticked(actions, self._ticked_at, time.time())
        except Exception:  # as above
            logger.exception("the dashboard missed what the coordinator did by itself")

    # --- serving ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve, and take samples each second, until cancelled."""
        await self._server.start()
        self.is_serving = True
        while True:
            await asyncio.sleep(SECOND_S)
            try:
                self._second()
            except Exception:  # as above
                logger.exception("the dashboard missed a second")

    def _second(self) -> None:
        now, unix_s = time.monotonic(), time.time()
        self._observer.second(now, unix_s)
        batch = self._observer.take_batch()
        if self._history is not None:
            self._history.write(batch)
            while not self._history.notes.empty():
                text = self._history.notes.get()
                logger.error("%s", text)
                self._observer.say("error", text, unix_s)
        self._encoded = None
        self.streams.tick()

    async def close(self) -> None:
        """Nothing is served any more, and everything is written."""
        self.streams.close()
        await self._server.close()
        if self._history is not None:
            self._history.write(self._observer.take_batch())
            self._history.close()

    # --- what the routes show ---------------------------------------------------------------

    def snapshot_json(self, after_event: int | None) -> tuple[bytes, int]:
        """Encoded once in a second for all; the events are each caller's own."""
        now = time.monotonic()
        if self._encoded is None or now - self._encoded[0] > SECOND_S:
            snapshot = self._observer.snapshot(now, time.time())
            self._encoded = now, msgspec.json.encode(snapshot).removesuffix(NO_EVENTS)
        book = self._observer.events
        after = book.last_number - NUM_FIRST_EVENTS if after_event is None else after_event
        events = msgspec.json.encode(book.after(after))
        return self._encoded[1] + b'"events":' + events + b"}", book.last_number

    def series(self, window: str) -> Series:
        """Samples of a window."""
        return self._observer.series(window, time.time())

    def records_json(self, limit: int, outcome: str | None, sla_class: str | None) -> bytes:
        """Records of requests, the latest first."""
        return b"[" + b",".join(self._observer.records.latest(limit, outcome, sla_class)) + b"]"

    def record_json(self, request_id: str) -> bytes | list[str]:
        """One request's, or the ids that begin so."""
        return self._observer.records.find(request_id)

    async def metrics(self) -> Response:
        """All metrics, for Prometheus; the text is made beside the loop."""
        families = self._metrics.collect(time.monotonic())
        return Response(await asyncio.to_thread(render, families), media_type=CONTENT_TYPE)

    def is_healthy(self) -> bool:
        """Whether the coordinator makes progress."""
        return time.monotonic() - self._ticked_at < STALE_S

    def is_ready(self) -> bool:
        """Whether its members have had the time to come back after its start."""
        return self.is_healthy() and time.monotonic() - self._core.started >= GRACE_S

    def order(self, message: DrainMember | SetWeights) -> DrainAnswer | WeightsAnswer:
        """Give an order, and let everybody see who gave it."""
        return self._order(message)
