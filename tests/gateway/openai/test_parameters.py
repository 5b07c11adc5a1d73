"""Fields of a request as sampling parameters; what is out of range, or not ours, is refused."""

import json
from typing import Any

import pytest

from gateway.admission import Offer
from gateway.http.body import decode
from gateway.http.errors import ApiError
from gateway.openai.parameters import chat_params, check_common, completion_params, num_choices_of
from gateway.openai.prompts import prompts_of
from gateway.openai.requests import ChatRequest, CompletionRequest
from gateway.openai.unsupported import IGNORED, REFUSED, IgnoredFields, refuse_unsupported
from tandem.frames import TokenIds
from tandem.sampling import GenerationDefaults, SamplingParams

OFFER = Offer("demo", vocab_size=100, max_model_len=64, defaults=GenerationDefaults())
HI = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> ChatRequest:
    return decode(json.dumps({"messages": HI, **fields}).encode(), ChatRequest)


def completion(raw: bytes | None = None, **fields: Any) -> CompletionRequest:
    body = json.dumps({"prompt": "a", **fields}).encode()
    return decode(raw or body, CompletionRequest)


def read(request: ChatRequest | CompletionRequest) -> SamplingParams:
    """All checks that an endpoint makes before it tokenises."""
    refuse_unsupported(request)
    check_common(request, OFFER)
    if isinstance(request, ChatRequest):
        return chat_params(request, OFFER, None)
    prompts_of(request, OFFER)
    return completion_params(request, OFFER)


def test_a_bare_request_has_the_defaults_of_its_kind() -> None:
    assert read(chat()) == SamplingParams()
    assert read(completion()) == SamplingParams(max_tokens=16)


def test_every_field_arrives() -> None:
    fields = {
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 7,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": -0.3,
        "logit_bias": {"5": -100, "7": 1.5},
        "stop": ["x", "yz"],
        "stop_token_ids": [3],
        "ignore_eos": True,
        "min_tokens": 2,
        "seed": 9,
        "max_tokens": 12,
    }
    expected = SamplingParams(
        temperature=0.0,
        top_p=0.5,
        top_k=7,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=-0.3,
        logit_bias={5: -100.0, 7: 1.5},
        stop=("x", "yz"),
        stop_token_ids=(3,),
        ignore_eos=True,
        min_tokens=2,
        seed=9,
        max_tokens=12,
    )
    assert read(completion(**fields)) == expected
    assert read(chat(**fields)) == expected
    assert read(completion(stop="one", top_k=-1)).stop == ("one",)
    assert read(completion(top_k=-1)).top_k == 0
    assert read(chat(max_tokens=5, max_completion_tokens=6)).max_tokens == 6
    nothing = dict.fromkeys(fields)
    assert read(completion(**nothing)) == SamplingParams(max_tokens=16)


def test_negative_seeds_are_the_same_64_bits() -> None:
    assert read(chat(seed=-1)).seed == 2**64 - 1
    assert read(chat(seed=-(2**63))).seed == 2**63
    assert read(chat(seed=2**64 - 1)).seed == 2**64 - 1


def test_logprobs_have_two_forms() -> None:
    assert read(chat(logprobs=True)).logprobs == 0
    assert read(chat(logprobs=True, top_logprobs=5)).logprobs == 5
    assert read(chat(logprobs=False)).logprobs is None
    assert read(completion(logprobs=3)).logprobs == 3


@pytest.mark.parametrize("name", ["text", "json_object", "json_schema"])
def test_response_formats(name: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    wanted = {"type": name, "json_schema": {"name": "n", "schema": schema, "strict": True}}
    given = read(chat(response_format=wanted)).json_schema
    expected = {"text": None, "json_object": {"type": "object"}, "json_schema": schema}[name]
    assert (None if given is None else json.loads(given)) == expected
    assert read(completion(response_format=wanted)).json_schema == given


ODD_NUMBERS = [b"NaN", b"1e309", b"-1e309", b'"5"', b"true", b"[]", b"1" * 5000]
FIELDS = [
    *("n", "best_of", "max_tokens", "temperature", "top_p", "top_k", "min_p", "seed"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "min_tokens"),
    *("logprobs", "priority", "ttft_ms", "deadline_s"),
]


@pytest.mark.parametrize("odd", ODD_NUMBERS)
@pytest.mark.parametrize("name", FIELDS)
def test_what_is_no_number_is_refused(name: str, odd: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        read(completion(b'{"prompt": "a", "%s": %s}' % (name.encode(), odd)))
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 10**9),
        ("n", 0),
        ("n", -1),
        ("n", 2**63),
        ("best_of", 10_000),
        ("logprobs", 10**9),
        ("logprobs", -1),
        ("max_tokens", -1),
        ("max_tokens", 0),
        ("max_tokens", 2**63),
        ("max_tokens", 65),
        ("max_tokens", 5.5),
        ("temperature", -1),
        ("temperature", 1e30),
        ("top_p", 0),
        ("top_p", 2),
        ("top_k", -5),
        ("min_p", 1.5),
        ("presence_penalty", 3),
        ("repetition_penalty", 0),
        ("seed", 2**70),
        ("seed", -(2**63) - 1),
        ("stop", ["a"] * 10_000),
        ("stop", ""),
        ("stop", "x" * 1000),
        ("stop", [1]),
        ("stop_token_ids", [100]),
        ("stop_token_ids", [-1]),
        ("logit_bias", {"999999999": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"²": 1}),
        ("logit_bias", {"5": 101}),
        ("logit_bias", {str(each): 1 for each in range(1000)}),
        ("min_tokens", 17),
        ("response_format", {"type": "grammar"}),
        ("response_format", {"type": "json_schema"}),
        ("response_format", {"type": "json_schema", "json_schema": {"schema": [1]}}),
        ("stream_options", {"include_usage": True}),
        ("request_id", "x" * 2**20),
        ("cache_salt", "x" * 2**20),
        ("prompt", []),
        ("prompt", ""),
        ("prompt", [""]),
        ("prompt", [[]]),
        ("prompt", [[-1]]),
        ("prompt", [[2**31]]),
        ("prompt", [[2**70]]),
        ("prompt", [[100]]),
        ("prompt", [100]),
        ("prompt", [1, "a"]),
        ("prompt", [1, [2]]),
        ("prompt", [True]),
        ("prompt", [1.5]),
        ("prompt", ["a"] * 10_000),
        ("prompt", None),
        ("prompt", {"a": 1}),
    ],
)
def test_what_is_out_of_range_is_refused_by_its_name(name: str, value: Any) -> None:
    with pytest.raises(ApiError) as caught:
        read(completion(**{name: value}))
    assert caught.value.status == 400
    assert caught.value.param is not None and caught.value.param.startswith(name)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "fields",
    [
        {"top_logprobs": 2},
        {"logprobs": True, "top_logprobs": 21},
        {"logprobs": 1},
        {"messages": []},
        {"messages": "hi"},
        {"max_completion_tokens": 0},
        {"stream": "yes"},
    ],
)
def test_chats_that_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as caught:
        read(chat(**fields))
    assert caught.value.status == 400


def test_another_model_is_not_here() -> None:
    with pytest.raises(ApiError) as caught:
        read(chat(model="gpt-9"))
    assert (caught.value.status, caught.value.param) == (404, "model")
    assert read(chat(model="demo")) == SamplingParams()


def test_n_has_bounds() -> None:
    assert num_choices_of(chat()) == 1
    assert num_choices_of(chat(n=128)) == num_choices_of(chat(n=128), 8) == 128
    with pytest.raises(ApiError):
        num_choices_of(chat(n=128), 9)
    assert read(completion(n=2, best_of=2)).max_tokens == 16
    with pytest.raises(ApiError):
        read(completion(n=1, best_of=2))


def test_prompts_in_all_their_forms() -> None:
    assert prompts_of(completion(prompt="ab"), OFFER) == ["ab"]
    assert prompts_of(completion(prompt=["a", "b"]), OFFER) == ["a", "b"]
    assert prompts_of(completion(prompt=[1, 2]), OFFER) == [TokenIds([1, 2])]
    assert prompts_of(completion(prompt=[[1], [2, 3]]), OFFER) == [TokenIds([1]), TokenIds([2, 3])]


@pytest.mark.parametrize("name", [*REFUSED, "modalities"])
def test_what_would_change_the_answer_is_refused(name: str) -> None:
    for value in ("(a+)+$", {"a": 1}, ["x"], 3):
        with pytest.raises(ApiError) as caught:
            read(completion(**{name: value}))
        assert (caught.value.status, caught.value.param) == (400, name)
    for off in (None, [], *([] if name == "modalities" else [False, 0, ""])):
        read(completion(**{name: off}))


def test_hints_are_ignored_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    ignored = IgnoredFields()
    fields = dict.fromkeys(IGNORED, "x")
    for _ in range(3):
        request = chat(**fields, never_heard_of={"a": [1]})
        read(request)
        ignored.note(request)
    told = [record.message.split()[2].rstrip(",") for record in caplog.records]
    assert "reasoning_effort" in told and "user" not in told
    assert len(told) == len(set(told))
