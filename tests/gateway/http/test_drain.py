"""A gateway that stops lets HTTP streams end, takes nothing new, and tells whom it must cut."""

import json

import pytest

from tests.gateway.http.running import (
    COMPLETION,
    HttpGateway,
    frames,
    make_model,
    parse,
    read_all,
    read_until,
    request,
    to_json,
)

STREAM = {**COMPLETION, "max_tokens": 250, "stream": True}


@pytest.fixture
def stopping(tokenizer) -> HttpGateway:
    return HttpGateway(make_model(tokenizer), {"drain_s": 10.0})


def test_streams_end_before_the_gateway_does(stopping: HttpGateway) -> None:
    with stopping as gateway:
        gateway.warm_up()
        with gateway.connect() as connection:
            with gateway.paused():
                connection.sendall(request("POST", "/v1/completions", to_json(STREAM)))
                gateway.until(lambda: bool(gateway.cluster.world.nodes["d0"].specs))
                gateway.run(gateway.stop.set)
                gateway.until_there(lambda: gateway.ask("GET", "/ready").status == 503)
                assert gateway.ask("GET", "/ready").json == {"status": "stopping"}
                assert gateway.ask("GET", "/health").status == 200
                refused = gateway.post("/v1/completions", COMPLETION)
                assert (refused.status, refused.error["code"]) == (503, "unavailable")
                assert int(refused.headers["retry-after"]) >= 1
            (answer,) = parse(read_all(connection))
        *chunks, last = frames(answer.body)
        assert last == "[DONE]"
        assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]][-1] == "length"
        gateway.until_there(lambda: not gateway.is_serving)


def test_who_is_cut_by_a_stop_is_told(stopping: HttpGateway) -> None:
    with stopping as gateway:
        gateway.warm_up()
        with gateway.connect() as connection:
            connection.sendall(request("POST", "/v1/completions", to_json(STREAM)))
            data = read_until(connection, b"data: ")
            gateway.run(gateway.cluster.pause.set)
            gateway.run(gateway.stop.set)
            gateway.until_there(lambda: gateway.ask("GET", "/ready").status == 503)
            gateway.run(gateway.stop.set)
            data += read_all(connection)
        *_, error, last = frames(parse(data)[0].body)
        assert last == "[DONE]"
        assert error["error"]["code"] == "unavailable", json.dumps(error)
        gateway.until_there(lambda: not gateway.is_serving)


def test_health_follows_the_coordinator(tokenizer, monkeypatch) -> None:
    monkeypatch.setattr("gateway.pool_view.STALE_S", 0.3)
    with HttpGateway(make_model(tokenizer), {}) as gateway:
        gateway.until_there(lambda: gateway.ask("GET", "/health").status == 503)
        answer = gateway.ask("GET", "/health")
        assert answer.json["status"] in ("no coordinator", "ok"), "welcomes come every second"
        assert gateway.ask("HEAD", "/health").body == b""
