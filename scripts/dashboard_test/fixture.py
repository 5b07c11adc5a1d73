"""A server with the page and a made-up deployment behind it.

    python -m scripts.dashboard_test.fixture --port 7499 --state loaded

POST /fixture/{state} turns it to another state, POST /fixture/restart into another incarnation.
"""

import argparse
import asyncio
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Route

from scripts.dashboard_test.stories import STATES, record_of
from scripts.dashboard_test.world import World

STATIC = Path(__file__).resolve().parents[2] / "coordinator/dashboard/static"
POLICY = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"


class Fixture:
    """Serves what the coordinator would; `key` None asks for none."""

    def __init__(self, world: World, key: str | None = None) -> None:
        self.world = world
        self.key = key
        self.is_cut = False  # streams end, and no new ones are served
        self.app = Starlette(
            routes=[
                Route("/", self._page),
                Route("/static/{name}", self._asset),
                Route("/api/stream", self._stream),
                Route("/api/snapshot", self._snapshot),
                Route("/api/series", self._series),
                Route("/api/requests", self._requests),
                Route("/api/requests/{request_id}", self._record),
                Route("/api/nodes/{name}/{order}", self._order, methods=["POST"]),
                Route("/fixture/{state}", self._turn, methods=["POST"]),
            ]
        )

    async def _page(self, request: Request) -> Response:
        return _file("index.html")

    async def _asset(self, request: Request) -> Response:
        return _file(request.path_params["name"])

    def _refusal(self, request: Request) -> Response | None:
        if self.key is None or request.headers.get("authorization") == f"Bearer {self.key}":
            return None
        error = {"message": "this deployment wants an operator's key", "code": "no_key"}
        return _json({"error": error}, 401)

    async def _stream(self, request: Request) -> Response:
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        if self.is_cut:
            return _json({"error": {"message": "going down"}}, 503)
        return StreamingResponse(self._frames(), media_type="text/event-stream")

    async def _frames(self) -> AsyncIterator[bytes]:
        last = 0
        while not self.is_cut:
            snapshot = self.world.snapshot(time.time(), last)
            last = max([last, *(event.number for event in snapshot.events)])
            yield b"event: snapshot\ndata: " + msgspec.json.encode(snapshot) + b"\n\n"
            await asyncio.sleep(1)

    async def _snapshot(self, request: Request) -> Response:
        return self._refusal(request) or _json(self.world.snapshot(time.time(), 0))

    async def _series(self, request: Request) -> Response:
        window = request.query_params.get("window", "5m")
        return self._refusal(request) or _json(self.world.series(window, time.time()))

    async def _requests(self, request: Request) -> Response:
        records = [record_of(f"{number * 2654435761:08x}", time.time()) for number in range(1, 9)]
        return self._refusal(request) or _json(records if self.world.load else [])

    async def _record(self, request: Request) -> Response:
        request_id = request.path_params["request_id"]
        if request_id.startswith("0000"):
            text = f"no request {request_id} is known: records are kept for three days"
            return _json({"error": {"message": text, "code": "not_found"}}, 404)
        return self._refusal(request) or _json(record_of(request_id, time.time()))

    async def _order(self, request: Request) -> Response:
        name, order = request.path_params["name"], request.path_params["order"]
        if order == "drain":
            self.world.drained |= {name}
            message = f"node {name} drains: its requests move to other nodes"
        else:
            message = f"node {name} will turn within a second"
        return self._refusal(request) or _json({"accepted": True, "message": message})

    async def _turn(self, request: Request) -> Response:
        state = request.path_params["state"]
        if state == "restart":
            self.world.incarnation += 1
            self.world.began_at = time.time()
        elif state in STATES:
            self.world.state = state
        return _json({"state": self.world.state})


def _file(name: str) -> Response:
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-store"}
    return FileResponse(STATIC / name, headers=headers)


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


class Running:
    """A fixture in a thread of this process; `with` starts and stops it."""

    def __init__(self, fixture: Fixture, port: int = 0) -> None:
        config = uvicorn.Config(
            fixture.app, port=port, log_level="warning", lifespan="off", timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)
        self.fixture = fixture

    def __enter__(self) -> "Running":
        self._thread.start()
        while not self._server.started:
            time.sleep(0.02)
        return self

    @property
    def address(self) -> str:
        """http://host:port."""
        port = self._server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"

    def __exit__(self, *exception: object) -> None:
        self.fixture.is_cut = True
        self._server.should_exit = True
        self._thread.join()


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=7499)
    parser.add_argument("--state", choices=STATES, default="loaded")
    parser.add_argument("--key")
    flags = parser.parse_args()
    world = World(state=flags.state, began_at=time.time() - 86_400 * 2)
    uvicorn.run(Fixture(world, flags.key).app, port=flags.port, log_level="warning")


if __name__ == "__main__":
    main()
