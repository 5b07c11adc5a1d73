"""HTTP attacks below and around a request: heads, bodies, connections (H3, H4, H12-H15)."""

import contextlib
import socket
import struct
import time

import pytest

from tests.gateway.http.running import (
    COMPLETION,
    HttpGateway,
    memory_bytes,
    parse,
    read_all,
    read_until,
    request,
    to_json,
)

SETTINGS = {
    "http_max_body_mib": 1,
    "http_idle_s": 1.0,
    "max_http_connections": 120,
    "max_live_requests": 40,
}
MANY = {**COMPLETION, "max_tokens": 250, "stream": True}


@pytest.fixture(autouse=True)
def healthy_afterwards(gateway: HttpGateway):
    yield
    gateway.canary()


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def post(path: str, body: bytes, **headers: str) -> bytes:
    """A request as the headers say; without a length unless they do."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    usual = {"content-length": "", "content-type": "application/json"}
    return request("POST", path, b"", {**usual, **given}) + body


# --- H3: bodies --------------------------------------------------------------------------------


def test_h3_a_body_that_says_it_is_too_large_is_not_read(gateway: HttpGateway) -> None:
    (answer,) = gateway.raw(post("/v1/completions", b"", content_length=str(1 << 30)))
    assert (answer.status, answer.headers["connection"]) == (413, "close")
    assert "--http-max-body-mib" in answer.error["message"]


def test_h3_a_body_without_a_length_ends_at_the_limit(gateway: HttpGateway) -> None:
    before = memory_bytes()
    body = chunked(*[b" " * 65536] * 64)
    (answer,) = gateway.raw(post("/v1/completions", body, transfer_encoding="chunked"))
    assert answer.status == 413
    assert memory_bytes() - before < 40 << 20


def test_h3_what_comes_behind_the_length_is_no_body(gateway: HttpGateway) -> None:
    body = to_json(COMPLETION)
    data = post("/v1/completions", body + b"x" * (1 << 20), content_length=str(len(body)))
    assert [answer.status for answer in gateway.raw(data)] == [200]


@pytest.mark.parametrize(
    "headers",
    [
        {"content_length": "10", "transfer_encoding": "chunked"},
        {"content_length": "1\r\ncontent-length: 2"},
        {"content_length": "-1"},
        {"content_length": "1e3"},
        {"content_length": "9" * 40},
        {"transfer_encoding": "gzip, chunked"},
        {"transfer_encoding": "xchunked"},
    ],
)
def test_h3_contradicting_lengths_are_refused(gateway: HttpGateway, headers: dict) -> None:
    answers = gateway.raw(post("/v1/completions", chunked(to_json(COMPLETION)), **headers))
    assert [answer.status for answer in answers] in ([400], [413], [408])


def test_h3_one_byte_chunks_are_one_body(gateway: HttpGateway) -> None:
    text = to_json(COMPLETION | {"note": "x" * 100_000})
    body = chunked(*[bytes([byte]) for byte in text])
    (answer,) = gateway.raw(post("/v1/completions", body, transfer_encoding="chunked"))
    assert answer.status == 200


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "identity, gzip"])
def test_h3_compressed_bodies_are_refused(gateway: HttpGateway, coding: str) -> None:
    answer = gateway.post("/v1/completions", COMPLETION, Content_Encoding=coding)
    assert answer.status == 415


# --- H4: heads ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nx: " + b"a" * (1 << 20),
        b"GET /health HTTP/1.1\r\n" + b"x: y\r\n" * 10_000 + b"\r\n",
        b"GET /health?" + b"a" * (1 << 20) + b" HTTP/1.1\r\n\r\n",
    ],
)
def test_h4_heads_have_limits(gateway: HttpGateway, head: bytes) -> None:
    (answer,) = gateway.raw(head)
    assert (answer.status, answer.headers["connection"]) == (431, "close")
    assert answer.error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("head", "statuses"),
    [
        (b"GET /health HTTP/1.1\nhost: x\n\n", (400, 200)),
        (b"GET /he\0alth HTTP/1.1\r\nhost: x\r\n\r\n", (400,)),
        (b"GET /health HTTP/1.1\r\nhost\0: x\r\n\r\n", (400,)),
        (b"GET /health HTTP/1.1\r\nx : y\r\n\r\n", (400,)),
        (b"GET /health HTTP/1.1\r\nx: a\r\n b\r\n\r\n", (400, 200)),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", (400,)),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400,)),
        (b"GET /health HTTP/9.9\r\nhost: x\r\n\r\n", (400,)),
        (b"GARBAGE\r\n\r\n", (400,)),
    ],
)
def test_h4_what_is_no_http_is_400(
    gateway: HttpGateway, head: bytes, statuses: tuple[int, ...]
) -> None:
    with gateway.connect() as connection:
        connection.sendall(head)
        connection.shutdown(socket.SHUT_WR)
        answers = parse(read_all(connection))
    assert all(answer.status in statuses for answer in answers)
    assert answers or 200 in statuses, "a half-closed connection may get nothing"


def test_h4_paths_are_taken_as_they_are(gateway: HttpGateway) -> None:
    for path in ("//health", "/health/", "//v1/..;/admin", "/v1/../health", "/%00", "/health;x"):
        assert gateway.ask("GET", path).status == 404, path
    for head in (b"GET http://evil/health HTTP/1.1\r\nhost: evil", b"GET /health HTTP/1.1\r\nh: x"):
        assert [a.status for a in gateway.raw(head + b"\r\nconnection: close\r\n\r\n")] == [200]


# --- H12: slow and stuck callers ---------------------------------------------------------------


def test_h12_a_head_that_does_not_end_is_cut(gateway: HttpGateway) -> None:
    with gateway.connect() as connection:
        for byte in b"GET /":
            connection.sendall(bytes([byte]))
            time.sleep(0.02)
        (answer,) = parse(read_all(connection))
    assert answer.status == 408
    with gateway.connect() as silent:
        assert parse(read_all(silent))[0].status == 408


def test_h12_a_body_of_a_byte_at_a_time_is_cut(gateway: HttpGateway) -> None:
    with gateway.connect() as connection:
        connection.sendall(post("/v1/completions", b"", content_length="1000"))
        with contextlib.suppress(ConnectionError):
            for _ in range(40):
                connection.sendall(b" ")
                time.sleep(0.05)
        (answer,) = parse(read_all(connection))
    assert (answer.status, answer.headers["connection"]) == (408, "close")


def hang_up_hard(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("end", ["close", "half", "reset"])
def test_h12_who_hangs_up_frees_the_nodes(gateway: HttpGateway, end: str) -> None:
    num_ends = len(gateway.cluster.ends)
    connection = gateway.connect()
    connection.sendall(request("POST", "/v1/completions", to_json(MANY)))
    read_until(connection, b"data: ")
    if end == "close":
        connection.close()
    elif end == "half":
        connection.shutdown(socket.SHUT_WR)
    else:
        hang_up_hard(connection)
    gateway.until(lambda: len(gateway.cluster.ends) == num_ends + 1)
    assert gateway.cluster.ends[-1].reason == "cancelled"
    gateway.until_idle()
    connection.close()


def test_h12_who_hangs_up_before_the_first_token_frees_the_nodes(gateway: HttpGateway) -> None:
    num_ends = len(gateway.cluster.ends)
    bodies = (MANY, MANY | {"stream": False}, MANY | {"n": 3})
    with gateway.paused():
        for body in bodies:
            with gateway.connect() as connection:
                connection.sendall(request("POST", "/v1/completions", to_json(body)))
                gateway.until(lambda: bool(gateway.cluster.world.nodes["d0"].specs))
            gateway.until_idle()
        gateway.until(lambda: len(gateway.cluster.ends) >= num_ends + len(bodies))
        assert {end.reason for end in gateway.cluster.ends[num_ends:]} == {"cancelled"}


# --- H13: crowds -------------------------------------------------------------------------------


def test_h13_more_connections_than_allowed_are_told_so(gateway: HttpGateway) -> None:
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(gateway.connect()) for _ in range(500)]
        answers = [parse(read_all(connection))[0] for connection in crowd[-300:]]
    # On a slow machine the first ones have been cut for their silence by then.
    assert {answer.status for answer in answers} <= {503, 408}
    refused = [answer for answer in answers if answer.status == 503]
    assert int(refused[0].headers["retry-after"]) >= 1
    assert refused[0].headers["x-should-retry"] == "true"
    gateway.until_idle()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:  # until the crowd's ends were seen
        with contextlib.suppress(AssertionError, ValueError):
            gateway.canary()
            return
    pytest.fail("no canary is served after a crowd")


def test_h13_more_requests_than_allowed_are_told_when_to_come_back(gateway: HttpGateway) -> None:
    with gateway.paused(), contextlib.ExitStack() as stack:
        for _ in range(40):
            connection = stack.enter_context(gateway.connect())
            connection.sendall(request("POST", "/v1/completions", to_json(MANY)))
        gateway.until(lambda: len(gateway.cluster.world.nodes["d0"].specs) == 40)
        refused = gateway.post("/v1/completions", COMPLETION)
        assert (refused.status, refused.error["code"]) == (429, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.headers["x-should-retry"] == "true"
        assert gateway.ask("GET", "/health").status == 200
    gateway.until_idle()


# --- H14: nothing grows ------------------------------------------------------------------------


def test_h14_a_thousand_callers_that_hang_up_leave_nothing(gateway: HttpGateway) -> None:
    data = request("POST", "/v1/completions", to_json(MANY))
    gateway.until_idle()
    before = gateway.run(gateway.holdings)
    for number in range(1000):
        connection = gateway.connect()
        connection.sendall(data)
        if number % 2:
            hang_up_hard(connection)
        else:
            connection.close()
    gateway.until_idle()
    gateway.until(lambda: gateway.holdings() <= before)
    assert gateway.run(gateway.cluster.world.nodes["d0"].emit) == []


# --- H15: other ways to speak HTTP -------------------------------------------------------------


def test_h15_pipelined_requests_are_not_mixed_up(gateway: HttpGateway) -> None:
    one = request("GET", "/version", keep=True)
    answers = gateway.raw(one + one + request("GET", "/health"))
    assert answers[0].status == 200
    assert "version" in answers[0].json
    assert all(answer.status == 200 for answer in answers)


def test_h15_requests_one_after_the_other_share_a_connection(gateway: HttpGateway) -> None:
    with gateway.connect() as connection:
        for _ in range(3):
            connection.sendall(request("POST", "/v1/completions", to_json(COMPLETION), keep=True))
            read_until(connection, b'"usage"')
        connection.sendall(request("GET", "/health"))
        assert b"200 OK" in read_all(connection)


def test_h15_what_comes_behind_a_stream_does_not_hide_its_end(gateway: HttpGateway) -> None:
    connection = gateway.connect()
    stream = request("POST", "/v1/completions", to_json(MANY), keep=True)
    connection.sendall(stream + request("GET", "/health", keep=True))
    read_until(connection, b"data: ")
    num_ends = len(gateway.cluster.ends)
    connection.close()
    gateway.until_idle()
    gateway.until(lambda: len(gateway.cluster.ends) > num_ends)
    assert gateway.cluster.ends[-1].reason == "cancelled"


def test_h15_http_1_0_gets_an_answer_and_an_end(gateway: HttpGateway) -> None:
    (answer,) = gateway.raw(b"GET /health HTTP/1.0\r\n\r\n")
    assert (answer.status, answer.headers["connection"]) == (200, "close")


def test_h15_a_body_may_be_announced(gateway: HttpGateway) -> None:
    body = to_json(COMPLETION)
    head = post("/v1/completions", b"", content_length=str(len(body)), expect="100-continue")
    with gateway.connect() as connection:
        connection.sendall(head)
        assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 100")
        connection.sendall(body)
        assert parse(read_all(connection))[0].status == 200
    too_large = post("/v1/completions", b"", content_length="99999999", expect="100-continue")
    assert [answer.status for answer in gateway.raw(too_large)] == [413]


@pytest.mark.parametrize("protocol", ["websocket", "h2c", "TLS/1.0"])
def test_h15_upgrades_are_ignored(gateway: HttpGateway, protocol: str) -> None:
    headers = {"connection": "Upgrade", "upgrade": protocol, "sec-websocket-version": "13"}
    (answer,) = gateway.raw(request("GET", "/health", headers=headers) + b"\x81\x05hello")
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    with gateway.connect() as connection:
        connection.sendall(b"CONNECT evil:80 HTTP/1.1\r\nhost: evil:80\r\n\r\n")
        assert parse(read_all(connection))[0].status in (400, 404, 405)


def test_h15_trailers_are_no_headers(gateway: HttpGateway) -> None:
    body = chunked(to_json(COMPLETION))[:-2] + b"x-request-id: trailer\r\n\r\n"
    (answer,) = gateway.raw(post("/v1/completions", body, transfer_encoding="chunked"))
    assert answer.status == 200
    assert answer.headers["x-request-id"] != "trailer"
