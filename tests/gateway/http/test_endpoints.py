"""Health, models, tokens, descriptions: what is no generating."""

import re

from tests.gateway.http.running import HttpGateway, frames

KEYLESS = {"/health", "/ready"}


def test_health_and_readiness_tell_a_status_alone(gateway: HttpGateway) -> None:
    for path in KEYLESS:
        answer = gateway.ask("GET", path)
        assert (answer.status, answer.json) == (200, {"status": "ok"})
        head = gateway.ask("HEAD", path)
        assert (head.status, head.body) == (200, b"")


def test_a_model_card_has_the_context(gateway: HttpGateway) -> None:
    (card,) = gateway.ask("GET", "/v1/models").json["data"]
    assert (card["id"], card["object"], card["root"], card["parent"]) == (
        "demo", "model", "demo", None,
    )  # fmt: skip
    assert card["max_model_len"] == 300, "the nodes', which is shorter than the model's"
    assert card["permission"] == []
    assert gateway.ask("GET", "/v1/models/demo").json == card
    missing = gateway.ask("GET", "/v1/models/org/other")
    assert missing.status == 404
    assert (missing.error["code"], missing.error["param"]) == ("unknown_model", "model")


def test_what_is_not_there_is_told_in_the_envelope(gateway: HttpGateway) -> None:
    missing = gateway.ask("GET", "/v1/nothing")
    assert (missing.status, missing.error["type"]) == (404, "not_found_error")
    wrong = gateway.ask("DELETE", "/v1/chat/completions")
    assert (wrong.status, wrong.headers["allow"]) == (405, "POST")
    assert "POST" in wrong.error["message"]


def test_a_request_id_comes_back_where_it_is_harmless(gateway: HttpGateway) -> None:
    answer = gateway.ask("GET", "/version", headers={"X-Request-Id": "abc-1.2:3/4"})
    assert answer.headers["x-request-id"] == "abc-1.2:3/4"
    assert re.fullmatch(r"\d+\.\d+\.\d+", answer.json["version"])
    for harmful in ("a b", "x" * 129, "é", '"><script>'):
        answer = gateway.ask("GET", "/version", headers={"X-Request-Id": harmful})
        assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"])


def test_tokens_there_and_back(gateway: HttpGateway, tokenizer) -> None:
    text = "def add(a, b):  # Grüße, 日本"
    answer = gateway.post("/tokenize", {"prompt": text, "return_token_strs": True}).json
    ids = tokenizer(text)["input_ids"]
    assert (answer["tokens"], answer["count"], answer["max_model_len"]) == (ids, len(ids), 300)
    assert len(answer["token_strs"]) == len(ids)
    bare = gateway.post("/tokenize", {"prompt": text, "add_special_tokens": False}).json
    assert bare["tokens"] == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert bare["token_strs"] is None
    back = gateway.post("/detokenize", {"tokens": bare["tokens"]})
    assert back.json == {"prompt": text}


def test_a_conversation_is_tokenised_by_the_template(gateway: HttpGateway, tokenizer) -> None:
    messages = [{"role": "user", "content": "hello"}]
    answer = gateway.post("/tokenize", {"messages": messages}).json
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert answer["tokens"] == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_wrong_questions_about_tokens_are_400(gateway: HttpGateway) -> None:
    cases = [
        ("/tokenize", {}),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}),
        ("/tokenize", {"messages": [{"role": "user", "content": "a"}], "chat_template": "{{1}}"}),
        ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {"tokens": [2**31]}),
        ("/detokenize", {"tokens": [4096]}),
        ("/detokenize", {"tokens": "5"}),
    ]
    for path, body in cases:
        answer = gateway.post(path, body)
        assert (answer.status, answer.error["type"]) == (400, "invalid_request_error"), body
    assert gateway.post("/tokenize", {"prompt": "a", "model": "other"}).status == 404


def test_the_description_covers_every_route(gateway: HttpGateway) -> None:
    document = gateway.ask("GET", "/openapi.json").json
    assert document["openapi"].startswith("3.1")
    paths = document["paths"]
    expected = {
        "/health", "/ready", "/version", "/v1/models", "/v1/models/{model_id}", "/tokenize",
        "/detokenize", "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank",
        "/v1/score", "/metrics", "/openapi.json",
    }  # fmt: skip
    assert expected <= set(paths)
    for path, operations in paths.items():
        for operation in operations.values():
            assert ("security" in operation) == (path not in KEYLESS)
            for name in _references(operation):
                assert name in document["components"]["schemas"]


def _references(value: object) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"].rsplit("/", 1)[1]] if "$ref" in value else []
        return own + [name for each in value.values() for name in _references(each)]
    return [name for each in value for name in _references(each)] if isinstance(value, list) else []


def test_answers_come_whole_and_as_a_stream(gateway: HttpGateway) -> None:
    body = {"prompt": "def f", "max_tokens": 8, "temperature": 0.0}
    whole = gateway.post("/v1/completions", body)
    assert whole.status == 200
    streamed = gateway.post("/v1/completions", body | {"stream": True})
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert streamed.headers["cache-control"] == "no-cache"
    assert streamed.headers["x-accel-buffering"] == "no"
    *chunks, last = frames(streamed.body)
    assert last == "[DONE]"
    text = "".join(c["choices"][0]["text"] for c in chunks if c["choices"])
    assert text == whole.json["choices"][0]["text"]
    gateway.until_idle()


def test_metrics_count_calls_by_route(gateway: HttpGateway) -> None:
    gateway.canary()
    text = gateway.ask("GET", "/metrics").body.decode()
    assert re.search(r'http_requests_total\{[^}]*"/v1/completions"[^}]*\} [1-9]', text)
