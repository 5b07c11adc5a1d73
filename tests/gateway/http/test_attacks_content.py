"""HTTP attacks by what a body says (H1, H2, H5-H10); each is refused, and others are served."""

import socket

import pytest

from tests.gateway.http.running import COMPLETION, HttpGateway, to_json

SETTINGS = {"http_max_body_mib": 24}
CHAT = {"model": "demo", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
HUGE = 2**63


@pytest.fixture(scope="module", autouse=True)
def healthy_at_the_end(gateway: HttpGateway):
    """Each case is followed by the next one's answer; the last by a canary."""
    yield
    gateway.canary()
    gateway.until_idle()


def refused(gateway: HttpGateway, path: str, body: object) -> dict:
    """The error of a body that is refused as wrong."""
    answer = gateway.post(path, body)
    assert answer.status == 400, (answer.status, str(body)[:200], answer.body[:300])
    assert answer.error["type"] == "invalid_request_error"
    assert len(answer.body) < 2000, "what a caller sends does not come back tenfold"
    return answer.error


def literal(field: str, value: str, base: dict = COMPLETION) -> bytes:
    """A body with a field as it is spelled."""
    return to_json({**base, field: "@"}).replace(b'"@"', value.encode())


@pytest.mark.parametrize("field", ["n", "best_of", "logprobs", "max_tokens", "top_k", "min_tokens"])
def test_h1_numbers_beyond_reason(gateway: HttpGateway, field: str) -> None:
    for value in ("1000000000", str(HUGE), "1e309", "NaN", "-Infinity", '"5"', "true", "-7", "1.5",
                  "9" * 5000, "[1]", "{}"):  # fmt: skip
        if (field, value) not in {("top_k", "1000000000"), ("max_tokens", "-7")}:
            refused(gateway, "/v1/completions", literal(field, value))
    assert refused(gateway, "/v1/completions", COMPLETION | {"max_tokens": -1})["param"] is not None
    refused(gateway, "/v1/chat/completions", CHAT | {"top_logprobs": HUGE, "logprobs": True})
    refused(gateway, "/v1/chat/completions", CHAT | {"n": HUGE})


def test_h2_prompts_that_are_none(gateway: HttpGateway) -> None:
    deep: object = "x"
    for _ in range(10):
        deep = [deep]
    prompts = (
        ["a"] * 100_000, [[]], [[-1]], [[2**31]], [[4096]], [], "", [""], None, 5, True, {}, deep,
        [1, "a"], [[1], "a"], [1.5], [HUGE], [-1], [[1], 2],
    )  # fmt: skip
    for prompt in prompts:
        refused(gateway, "/v1/completions", {**COMPLETION, "prompt": prompt})
    refused(gateway, "/v1/completions", {"max_tokens": 2})
    nested = b'{"prompt": ' + b"[" * 10_000 + b"]" * 10_000 + b"}"
    refused(gateway, "/v1/completions", nested)
    for messages in ([], None, [{}], [{"role": "user"}], "hi", [[]], [{"role": 5, "content": "a"}],
                     [{"role": "root", "content": "a"}], [{"content": "a"}]):  # fmt: skip
        refused(gateway, "/v1/chat/completions", {"messages": messages})


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b"{" * 100_000,
        b'{"a":' * 100_000,
        b'{"prompt": "\\ud800", "max_tokens": 2}',
        b"\xef\xbb\xbf" + to_json(COMPLETION),
        b'{"prompt": "a", "prompt": "b", "max_tokens": 2}',
        b'{"prompt": "a", "max_tokens": 2, "x": {"y": 1, "y": 2}}',
        b'{"prompt": "a", "max_tokens": ' + b"9" * 10_000 + b"}",
        b'{"prompt": "\xff\xfe", "max_tokens": 2}',
        to_json(COMPLETION).decode().encode("utf-16"),
        to_json(COMPLETION) + b"{}",
        to_json(COMPLETION)[:-1],
        b'{"prompt": "a\x00b"}',
        b"{'prompt': 'a'}",
        b'{"prompt": "a", "max_tokens": 2,}',
        b"null",
        b"[]",
        b'"text"',
        b"",
        b"\x00" * 100,
    ],
)
def test_h5_what_is_no_json_as_it_should_be(gateway: HttpGateway, body: bytes) -> None:
    refused(gateway, "/v1/completions", body)


def test_h5_a_long_text_is_too_long_for_the_model(gateway: HttpGateway) -> None:
    error = refused(gateway, "/v1/completions", COMPLETION | {"prompt": "a " * (5 << 20)})
    assert error["code"] in ("context_too_long", "invalid_request")


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("temperature", ("NaN", "-1", "1e30", "1e309", '"hot"')),
        ("top_p", ("0", "2", "-0.5", "NaN")),
        ("top_k", ("-5", "1.5")),
        ("min_p", ("-1", "2")),
        ("presence_penalty", ("1e30", "-1e30")),
        ("frequency_penalty", ("1e30",)),
        ("repetition_penalty", ("0", "-1", "1e30")),
        ("logit_bias", ('{"999999999": 1}', '{"5": 1e309}', '{"-1": 1}', '{"a": 1}', '{"5": "x"}',
                        '{"5": 1e9}', "[5]")),
        ("stop", ("5", "[5]", '[""]', str(["a"] * 10_000).replace("'", '"'))),
        ("seed", (str(2**70), "1.5", '"a"')),
        ("stop_token_ids", ("[-1]", "[4096]", "5")),
        ("priority", ("101", "-1000")),
        ("ttft_ms", ("NaN", "1e309", '"soon"')),
    ],
)  # fmt: skip
def test_h6_sampling_out_of_range(gateway: HttpGateway, field: str, values: tuple) -> None:
    for value in values:
        refused(gateway, "/v1/completions", literal(field, value))


def test_h6_a_million_biases(gateway: HttpGateway) -> None:
    bias = {str(number): 1 for number in range(300_000)}
    refused(gateway, "/v1/completions", COMPLETION | {"logit_bias": bias})


def test_h7_templates_and_grammars_of_callers(gateway: HttpGateway) -> None:
    deep = b'{"properties": {"a": ' * 500 + b"{}" + b"}}" * 500
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": "@"}}
    body = to_json(CHAT | {"response_format": schema}).replace(b'"@"', deep)
    refused(gateway, "/v1/chat/completions", body)
    bad_pattern = {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}
    for more in (
        {"chat_template": "{{ ''.__class__ }}"},
        {"chat_template_kwargs": {"chat_template": "{{ 1 }}"}},
        {"chat_template_kwargs": {"messages": "x"}},
        {"chat_template_kwargs": {"tokenize": True}},
        {"chat_template_kwargs": {"a": [1]}},
        {"chat_template_kwargs": {"a": {"b": 1}}},
        {"guided_regex": "(a+)+$"},
        {"guided_json": {"type": "object"}},
        {"structured_outputs": {"regex": "(a+)+$"}},
        {"response_format": {"type": "grammar"}},
        {"response_format": "json"},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": bad_pattern}}],
         "tool_choice": "required"},
        {"tools": [{"type": "function", "function": {"name": "f\n<|im_end|>"}}]},
        {"tools": [{"type": "code_interpreter"}]},
        {"tool_choice": "required"},
    ):  # fmt: skip
        refused(gateway, "/v1/chat/completions", CHAT | more)


def test_h8_nothing_is_fetched_for_a_caller(gateway: HttpGateway) -> None:
    with socket.socket() as bait:
        bait.bind(("127.0.0.1", 0))
        bait.listen()
        bait.setblocking(False)
        port = bait.getsockname()[1]
        for url in (f"http://127.0.0.1:{port}/", f"http://a\\@127.0.0.1:{port}/", "file:///etc/passwd",
                    "http://169.254.169.254/", "data:image/png;base64,AAAA"):  # fmt: skip
            for part in ({"type": "image_url", "image_url": {"url": url}},
                         {"type": "input_audio", "input_audio": {"data": url, "format": "wav"}},
                         {"type": "file", "file": {"file_data": url}}):  # fmt: skip
                content = [{"type": "text", "text": "look"}, part]
                message = {"role": "user", "content": content}
                refused(gateway, "/v1/chat/completions", CHAT | {"messages": [message]})
        with pytest.raises(BlockingIOError):
            bait.accept()


def test_h9_names_of_special_tokens_are_text(gateway: HttpGateway, tokenizer) -> None:
    name = tokenizer.eos_token
    special = tokenizer.convert_tokens_to_ids(name)
    text = f"a {name} b"
    ids = gateway.post("/tokenize", {"prompt": text, "add_special_tokens": False}).json["tokens"]
    assert special not in ids
    assert gateway.post("/detokenize", {"tokens": ids}).json["prompt"] == text
    messages = [{"role": "user", "content": text}]
    own = gateway.post("/tokenize", {"messages": [{"role": "user", "content": "a b"}]}).json
    ids = gateway.post("/tokenize", {"messages": messages}).json["tokens"]
    assert ids.count(special) == own["tokens"].count(special), "only the template's own"
    for body in ({"prompt": text}, {"model": "demo", "messages": messages}):
        path = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
        answer = gateway.post(path, {**body, "max_tokens": 2})
        count = gateway.post("/tokenize", body).json["count"]
        assert answer.json["usage"]["prompt_tokens"] == count


def test_h10_callers_name_nothing_inside(gateway: HttpGateway) -> None:
    places = gateway.cluster.places
    for more in (
        {"request_id": "a" * 32, "rid": "b" * 32, "user": "c"},
        {"request_id": "../../etc/passwd"},
        {"session_id": "x" * 1000},
        {"cache_salt": "a\x00b"},
    ):
        answer = gateway.post("/v1/completions", COMPLETION | more, X_Request_Id="ab" * 16)
        assert answer.status in (200, 400)
        if answer.status == 200:
            assert answer.headers["x-request-id"] == "ab" * 16
            told = gateway.run(lambda: places[-1].request_id).hex()
            assert told not in ("ab" * 16, "a" * 32, "b" * 32)
    for wrong in (
        {"kv_transfer_params": {"do_remote_decode": True}},
        {"bootstrap_room": 1, "bootstrap_host": "evil"},
        {"request_id": "x" * (1 << 20)},
        {"cache_salt": "x" * (1 << 20)},
    ):
        refused(gateway, "/v1/completions", COMPLETION | wrong)
    harmless = gateway.post("/v1/completions", COMPLETION, X_Request_Id="a")
    again = gateway.post("/v1/completions", COMPLETION, X_Request_Id="a")
    assert harmless.status == again.status == 200
    assert harmless.json["id"] != again.json["id"], "a name that is used twice is no key"
