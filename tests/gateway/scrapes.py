"""A gateway's numbers without a gateway, an HTTP app without a server, scrapes as values."""

import asyncio
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from gateway.metrics import GatewayMetrics
from gateway.metrics_http import HttpMeter, Message, Receive, Send
from gateway.tracing import CALLER, Caller

PATHS = ("/v1/models", "/v1/models/{id:path}", "/v1/chat/completions", "/metrics")


@dataclass
class Numbers:
    """What a ledger and sessions tell."""

    num_live: int = 5
    num_waiting: int = 2
    num_prompt_tokens: int = 70
    num_output_tokens: int = 900
    num_dropped: int = 1
    num_resends: int = 4
    num_cuts: int = 3

    def __len__(self) -> int:
        return self.num_live


class App:
    """Answers as its path says; keeps who called."""

    def __init__(self) -> None:
        self.callers: list[Caller | None] = []
        self.num_open: list[int] = []
        self.metrics: GatewayMetrics | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        self.callers.append(CALLER.get())
        if scope["path"] == "/broken":
            raise RuntimeError("broken")
        is_stream = "chat" in scope["path"]
        kind = b"text/event-stream; charset=utf-8" if is_stream else b"application/json"
        status = 404 if scope["path"] == "/nothing" else 200
        headers = [(b"content-type", kind)]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for piece in (b"one", b"two", b""):
            await send({"type": "http.response.body", "body": piece, "more_body": bool(piece)})
        if self.metrics is not None:
            self.num_open.append(self.metrics.num_open_streams)


def call(meter: HttpMeter, path: str, method: str = "GET", **headers: str) -> None:
    """One HTTP call, in a task of its own as servers do."""
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "path": path, "method": method, "headers": pairs}

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        pass

    asyncio.run(meter(scope, receive, send))


def served_http(metrics: GatewayMetrics) -> App:
    """Some calls on some routes."""
    app = App()
    app.metrics = metrics
    meter = HttpMeter(app, metrics, PATHS)
    call(meter, "/v1/models")
    call(meter, "/v1/models/demo/of/mine")
    call(meter, "/v1/chat/completions", "POST", traceparent="00-1-2-01")
    call(meter, "/nothing", "BREW")
    return app


def scrape(metrics: GatewayMetrics) -> dict[tuple[str, ...], float]:
    """(sample's name, label values in the order of their names) -> value."""
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }
