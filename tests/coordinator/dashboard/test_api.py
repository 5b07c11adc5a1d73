"""The dashboard's routes over real sockets: what they show, whom they let in, what they refuse."""

import asyncio
import contextlib
import socket
from pathlib import Path

import msgspec
import pytest

from coordinator.dashboard import listening
from coordinator.dashboard.api import Api
from coordinator.dashboard.listening import HttpServer
from tandem.bearer import add_key
from tandem.keys import KeyFolder
from tandem.messages.membership import HeartbeatAck
from tandem.messages.operations import RequestRecord, Series, Snapshot
from tandem.messages.placement import GatewayWelcome

JSON = {"Content-Type": "application/json"}


def test_what_operators_ask_for(open_site) -> None:
    async def run() -> None:
        async with open_site() as site:
            for number in (0xABCD1234 << 96, 2):
                site.cluster.place(number)
            site.cluster.end(2)
            get = site.client.get
            snapshot = msgspec.json.decode((await get("/api/snapshot")).content, type=Snapshot)
            assert snapshot.num_live == 1 and len(snapshot.classes) == 3
            assert "the coordinator starts" in snapshot.events[0].text
            for window in ("5m", "1h", "3d"):
                answer = await get("/api/series", params={"window": window})
                assert msgspec.json.decode(answer.content, type=Series).step_s in (1, 10, 300)
            records = msgspec.json.decode(
                (await get("/api/requests?limit=5")).content, type=list[RequestRecord]
            )
            assert [int(each.request_id, 16) for each in records] == [2]
            live = await get("/api/requests/chatcmpl-ABCD1234-0000")
            assert live.json()["reason"] is None and live.json()["steps"]
            assert live.headers["cache-control"] == "no-store"
            metrics = await get("/metrics")
            assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
            assert "tandem_slo_requests_total" in metrics.text

    asyncio.run(run())


BAD_QUESTIONS = [
    ("/api/series?window=7d", 400, "none of 5m, 1h, 3d"),
    ("/api/requests?limit=0", 400, "from 1 to 1000"),
    ("/api/requests?limit=99999999999999999999", 400, "from 1 to 1000"),
    ("/api/requests?outcome=odd", 400, "none of live, stop"),
    ("/api/requests/abc", 400, "first 8 or more"),
    ("/api/requests/" + "f" * 32, 404, "is known here"),
    ("/api/nothing", 404, "Not Found"),
    ("/static/../api.py", 404, "Not Found"),
    ("/static/%2e%2e/api.py", 404, "no such file"),
    ("/static//etc/passwd", 404, "no such file"),
    ("/static/missing.js", 404, "no such file"),
    ("/api/snapshot/", 404, "Not Found"),
]


def test_bad_questions_get_the_envelope(open_site) -> None:
    async def run() -> None:
        async with open_site() as site:
            for path, status, words in BAD_QUESTIONS:
                answer = await site.client.get(path)
                assert answer.status_code == status, path
                error = answer.json()["error"]
                assert set(error) == {"message", "type", "param", "code"}
                assert words in error["message"], path

    asyncio.run(run())


def test_every_answer_has_strict_headers_and_the_page_is_open(open_site) -> None:
    async def run() -> None:
        async with open_site() as site:
            for path in ("/", "/api/snapshot", "/api/nothing", "/health"):
                headers = (await site.client.get(path)).headers
                assert "default-src 'self'" in headers["content-security-policy"]
                assert "frame-ancestors 'none'" in headers["content-security-policy"]
                assert headers["x-content-type-options"] == "nosniff"
                assert headers["x-frame-options"] == "DENY"
                assert "server" not in headers
            assert (await site.client.get("/")).headers["content-type"].startswith("text/html")
            assert (await site.client.post("/api/snapshot")).status_code == 405

    asyncio.run(run())


def test_a_drain_and_weights_go_the_way_of_an_operators_order(open_site) -> None:
    async def run() -> None:
        async with open_site() as site:
            post = site.client.post
            kept = await post("/api/nodes/d0/drain", json={})
            assert kept.status_code == 200 and kept.json()["accepted"] is False
            assert "the last node that serves decode" in kept.json()["message"]
            assert site.outbox.sent == []
            turned = await post(
                "/api/nodes/p0/weights", json={"prefill": 1, "decode": 0.5, "force": False}
            )
            assert turned.json() == {
                "accepted": True,
                "message": "node p0 turns from prefill to both roles (prefill 1, decode 0.5)",
            }
            kinds = {peer: type(message) for peer, message in site.outbox.sent}
            assert kinds == {b"p0": HeartbeatAck, b"gw": GatewayWelcome}
            drained = await post("/api/nodes/d0/drain", json={"force": True})
            assert drained.json()["accepted"] is True
            assert site.cluster.core.members.nodes["d0"].draining
            unknown = await post("/api/nodes/a/b/drain", content=b"", headers=JSON)
            assert "no node or gateway is called a/b" in unknown.json()["message"]
            snapshot = (await site.events(2))[-1]
            assert [e.text for e in site.dashboard._observer.events.after(0) if e.kind == "order"]
            assert {n.node_id: n.state for n in snapshot.nodes}["d0"] == "draining"

    asyncio.run(run())


FOREIGN_ORDERS: list[tuple[dict[str, str], bytes, int]] = [
    ({}, b"{}", 415),
    ({"Content-Type": "text/plain"}, b"{}", 415),
    ({"Content-Type": "application/x-www-form-urlencoded"}, b"force=1", 415),
    (JSON, b"{", 400),
    (JSON, b'{"force": 1}', 400),
    (JSON, b'{"other": 1}', 400),
    (JSON, b"[" * 4000, 400),
    (JSON, b"\xff", 400),
    (JSON, b" " * 5000, 413),
    ({**JSON, "Origin": "http://evil.example"}, b"{}", 403),
    ({**JSON, "Origin": "null"}, b"{}", 403),
]


def test_orders_that_a_foreign_page_could_send_are_refused(open_site) -> None:
    async def run() -> None:
        async with open_site() as site:
            url = "/api/nodes/d0/drain"
            for headers, content, status in FOREIGN_ORDERS:
                answer = await site.client.post(url, headers=headers, content=content)
                assert answer.status_code == status, (headers, content[:50], answer.text)
                assert answer.json()["error"]["message"]
            assert not site.cluster.core.members.nodes["d0"].draining

    asyncio.run(run())


def test_without_keys_foreign_names_are_refused(open_site) -> None:
    """A page that made its own name point here must not read (DNS rebinding)."""

    async def run() -> None:
        async with open_site() as site:
            for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "a b"):
                answer = await site.client.get("/api/snapshot", headers={"Host": host})
                assert answer.status_code == 403, host
                answer = await site.client.get("/health", headers={"Host": host})
                assert answer.status_code == 200 and not answer.content
            for host in ("localhost:7400", "127.0.0.1", "[::1]:7400", "LOCALHOST", "coordinator:1"):
                answer = await site.client.get("/api/snapshot", headers={"Host": host})
                assert answer.status_code == 200, host
            own = {"Host": "localhost:1", "Origin": "http://localhost:1"}
            answer = await site.client.post("/api/nodes/d0/drain", json={}, headers=own)
            assert answer.status_code == 200

    asyncio.run(run())


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, str, str]:
    """A folder of keys, an operator's bearer key, a client's."""
    folder = tmp_path / "keys"
    KeyFolder.complete(folder, [("coordinator", "coordinator")])
    return folder, add_key(folder, "olivia", "operator"), add_key(folder, "carl", "client")


def test_with_keys_every_route_but_few_needs_an_operators(open_site, keys) -> None:
    """Routes are enumerated: one that is added later is closed, too."""
    folder, operator, client = keys
    routes = [(method, route.path) for route in Api(None).routes() for method in route.methods]
    routes += [("GET", "/api/stream"), ("OPTIONS", "/api/snapshot"), ("GET", "/api/nothing")]
    is_open = {"/", "/health", "/ready", "/favicon.ico", "/static/{name:path}"}

    async def run() -> None:
        async with open_site(keys=str(folder)) as site:
            for method, path in routes:
                answer = await site.client.request(method, path, headers=JSON)
                assert (answer.status_code == 401) == (path not in is_open), (method, path)
                assert b"p0" not in answer.content
            wrong = ["x", operator[:-1], operator + "x", operator.upper(), "x" * 20_000]
            for key in wrong:
                headers = {"Authorization": f"Bearer {key}"}
                answer = await site.client.get("/api/snapshot", headers=headers)
                assert answer.status_code == 401, key[:50]
                assert answer.headers["www-authenticate"] == "Bearer"
            headers = {"Authorization": f"Bearer {client}"}
            answer = await site.client.get("/api/snapshot", headers=headers)
            assert answer.status_code == 403 and "client's" in answer.json()["error"]["message"]
            headers = {"Authorization": f"Bearer {operator}", "Host": "dashboard.example"}
            assert (await site.client.get("/api/snapshot", headers=headers)).status_code == 200
            assert (await site.client.get("/metrics", headers=headers)).status_code == 200
            query = await site.client.get("/api/snapshot", params={"key": operator})
            assert query.status_code == 401

    asyncio.run(run())


def test_an_endless_head_is_cut_and_others_are_served(
    open_site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "HEAD_S", 0.3)

    async def run() -> None:
        async with open_site() as site:
            host, port = site.dashboard.address.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"GET / HTTP/1.1\r\nX: " + b"a" * 40_000)
            assert b"431" in await reader.read(100)
            writer.close()
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"GET / HT")  # and never more
            async with asyncio.timeout(20):
                with contextlib.suppress(ConnectionError):
                    assert await reader.read(100) == b""
            writer.close()
            for junk in (b"\0" * 100, b"\x16\x03\x01" + b"\xff" * 50, b"GET /\n\n"):
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(junk)
                with contextlib.suppress(ConnectionError):
                    await reader.read(300)
                writer.close()
            assert (await site.client.get("/health")).status_code == 200

    asyncio.run(run())


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match="--dashboard-port 0 picks a free port"):
            HttpServer(None, host="127.0.0.1", port=port)
    with pytest.raises(ValueError, match="cannot listen on"):
        HttpServer(None, host="999.1.1.1", port=0)


def test_without_keys_only_loopback(open_site) -> None:
    async def run() -> None:
        with pytest.raises(ValueError, match="reachable from other machines"):
            async with open_site(dashboard_host="0.0.0.0"):
                pytest.fail("it listens")

    asyncio.run(run())
