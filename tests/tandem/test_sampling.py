"""SamplingParams: range errors that advise, model defaults, the wire form and its limits."""

import math

import msgspec
import pytest

from tandem.sampling import (
    GenerationDefaults,
    SamplingParams,
    is_greedy,
    validate,
    with_model_defaults,
)


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"max_tokens": 0}, ["max_tokens", "is 0", "1 to 64"]),
        ({"max_tokens": 65}, ["max_tokens", "65", "1 to 64"]),
        ({"max_tokens": 2.0}, ["max_tokens", "whole number"]),
        ({"temperature": -0.1}, ["temperature", "-0.1", "0 for greedy"]),
        ({"temperature": math.nan}, ["temperature", "nan"]),
        ({"temperature": "hot"}, ["temperature", "'hot'"]),
        ({"temperature": True}, ["temperature", "True"]),
        ({"top_k": -1}, ["top_k", "-1", "use 0 to turn it off"]),
        ({"top_p": 0.0}, ["top_p", "above 0 and at most 1"]),
        ({"top_p": 1.5}, ["top_p", "1.5", "use 1 to turn it off"]),
        ({"min_p": 1.1}, ["min_p", "1.1"]),
        ({"repetition_penalty": 0.0}, ["repetition_penalty", "above 0"]),
        ({"presence_penalty": 3.0}, ["presence_penalty", "-2 to 2"]),
        ({"frequency_penalty": -math.inf}, ["frequency_penalty", "-inf"]),
        ({"min_tokens": -1}, ["min_tokens", "-1"]),
        ({"min_tokens": 9, "max_tokens": 8}, ["min_tokens", "9", "max_tokens"]),
        ({"logprobs": 21}, ["logprobs", "21", "0 to 20"]),
        ({"seed": -1}, ["seed", "-1"]),
        ({"seed": 2**64}, ["seed", str(2**64)]),
        ({"logit_bias": {32: 1.0}}, ["logit_bias", "32", "0 to 31"]),
        ({"logit_bias": {3: 101.0}}, ["logit_bias[3]", "101.0"]),
        ({"logit_bias": dict.fromkeys(range(301), 0.0)}, ["logit_bias", "301", "300"]),
        ({"stop_token_ids": (-1,)}, ["stop_token_ids", "-1", "0 to 31"]),
        ({"stop_token_ids": (1,) * 65}, ["stop_token_ids", "65", "64"]),
        ({"stop": ("a",) * 17}, ["stop", "17", "16"]),
        ({"stop": ("",)}, ["stop string", "0 characters"]),
        ({"stop": "END"}, ["stop", "('END',)"]),
    ],
)
def test_validate_names_field_value_range_and_advice(
    fields: dict[str, object], parts: list[str]
) -> None:
    params = SamplingParams(**fields)  # type: ignore[arg-type]
    with pytest.raises(ValueError) as caught:
        validate(params, vocab_size=32, max_model_len=64)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(max_tokens=64, min_tokens=64, temperature=0, top_k=1, top_p=1, min_p=1),
        SamplingParams(seed=2**64 - 1, logprobs=20, logit_bias={0: -100, 31: 100.0}),
        SamplingParams(stop=("\n\n", "def "), stop_token_ids=(0, 31), ignore_eos=True),
    ],
)
def test_limits_themselves_are_allowed(params: SamplingParams) -> None:
    validate(params, vocab_size=32, max_model_len=64)
    wire = msgspec.msgpack.encode(params)
    assert msgspec.msgpack.decode(wire, type=SamplingParams) == params


def test_model_defaults_fill_only_unset_fields() -> None:
    defaults = GenerationDefaults(temperature=0.6, top_k=20, top_p=0.95, repetition_penalty=1.05)
    filled = with_model_defaults(SamplingParams(temperature=1.0, top_k=0), defaults)
    assert (filled.temperature, filled.top_k) == (1.0, 0)
    assert (filled.top_p, filled.min_p, filled.repetition_penalty) == (0.95, 0.0, 1.05)


def test_without_model_defaults_everything_is_neutral() -> None:
    filled = with_model_defaults(SamplingParams(seed=3, max_tokens=7), GenerationDefaults())
    neutral = SamplingParams(
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        min_p=0.0,
        repetition_penalty=1.0,
        seed=3,
        max_tokens=7,
    )
    assert filled == neutral


def test_greedy_is_temperature_zero() -> None:
    assert is_greedy(SamplingParams(temperature=0))
    assert not is_greedy(SamplingParams())
    assert is_greedy(with_model_defaults(SamplingParams(), GenerationDefaults(temperature=0.0)))


@pytest.mark.parametrize(
    "raw",
    [
        {"logit_bias": dict.fromkeys(range(301), 0.0)},
        {"stop_token_ids": [1] * 65},
        {"stop": ["x"] * 17},
        {"stop": ["x" * 257]},
        {"temperature": "hot"},
    ],
)
def test_the_wire_limits_counts_and_types(raw: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(raw), type=SamplingParams)


def test_json_form_takes_bias_keys_as_strings() -> None:
    params = msgspec.json.decode(b'{"logit_bias": {"5": -1.5}, "stop": ["x"]}', type=SamplingParams)
    assert params == SamplingParams(logit_bias={5: -1.5}, stop=("x",))
