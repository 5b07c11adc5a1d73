"""Masks of JSON schemas: what is drawn keeps them, wherever and however it is continued."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine import grammar
from engine.grammar import Grammars
from engine.sampler import Sampler, sample_on_cpu, sample_on_device
from node.runner import Sampled, SampleRequest
from scheduling.views import RequestKey
from tandem.json_schema import MAX_DEPTH, NoGrammarLibraryError, require_compilable
from tandem.sampling import MAX_SCHEMA_BYTES, SamplingParams, validate
from tests.engine.schemas import ALL, NUMBERS, PERSON, breach, text_of

VOCAB, EOS = 4096, 0
KEY: RequestKey = (b"request", 1)


@pytest.fixture(scope="module")
def grammars(demo_model: Path) -> Grammars:
    return Grammars(demo_model, VOCAB, (EOS,))


def text(grammars: Grammars, ids: list[int]) -> str:
    return str(grammars._trie.decode_str(ids))  # type: ignore[attr-defined]


def request(
    schema: dict[str, Any], output: list[int], key: RequestKey | None = None, **params: Any
) -> SampleRequest:
    given = {"max_tokens": 400, "json_schema": text_of(schema), **params}
    return SampleRequest(
        params=SamplingParams(**given),
        seed=11,
        choice=0,
        output_index=len(output),
        prompt_ids=np.arange(5, dtype=np.int32),
        output_ids=np.array(output, np.int32),
        eos_token_ids=(EOS,),
        key=key,
    )


def logits(index: int, seed: int = 0) -> torch.Tensor:
    """Of one row, at an output index: noise, as a model that knows nothing would give."""
    generator = torch.Generator().manual_seed(1000 * seed + index)
    return torch.randn(1, VOCAB, generator=generator)


def draw(sampler: Sampler, wanted: SampleRequest, seed: int = 0) -> Sampled:
    return sampler.sample(logits(wanted.output_index, seed), [wanted])[0]


def answer(
    sampler: Sampler, schema: dict[str, Any], key: RequestKey | None, seed: int, **params: Any
) -> list[int]:
    """Tokens to the end of the text."""
    output: list[int] = []
    while not output or output[-1] != EOS:
        sampled = draw(sampler, request(schema, output, key, **params), seed)
        assert sampled.error is None, sampled.error
        output.append(sampled.token_id)
        assert len(output) < 400
    return output


@pytest.mark.parametrize("params", [{"temperature": 0.0}, {}, {"top_k": 5, "top_p": 0.9}], ids=str)
@pytest.mark.parametrize("name", ALL)
def test_what_is_drawn_is_json_that_keeps_the_schema(
    grammars: Grammars, name: str, params: dict[str, Any]
) -> None:
    for seed in range(3):
        ids = answer(Sampler(grammars), ALL[name], (b"x", seed + 1), seed, **params)
        value = json.loads(text(grammars, ids[:-1]))
        assert breach(value, ALL[name]) is None


def test_following_is_only_a_cache(grammars: Grammars) -> None:
    """Token by token under one key, without any, and anew from every index: as after a fail-over,
    at a decode node's first token, and after a preemption."""
    sampler = Sampler(grammars)
    ids = answer(sampler, PERSON, KEY, seed=4)
    assert answer(sampler, PERSON, None, seed=4) == ids
    fresh = Sampler(Grammars(grammars._folder, VOCAB, (EOS,)))  # type: ignore[attr-defined]
    for index in range(0, len(ids), 3):
        wanted = request(PERSON, ids[:index], (b"elsewhere", index + 1))
        assert draw(fresh, wanted, seed=4).token_id == ids[index]
        again = request(PERSON, ids[: index // 2], (b"elsewhere", index + 1))
        assert draw(fresh, again, seed=4).token_id == ids[index // 2]


def test_the_end_is_allowed_where_the_text_may_end_and_only_there(grammars: Grammars) -> None:
    ids = answer(Sampler(grammars), NUMBERS, KEY, seed=1)
    for index in range(len(ids)):
        allowed = grammars.allowed(request(NUMBERS, ids[:index]))
        try:
            is_whole = breach(json.loads(text(grammars, ids[:index])), NUMBERS) is None
        except json.JSONDecodeError:
            is_whole = False
        assert allowed[EOS] == is_whole
    assert len(allowed) == VOCAB


def test_rows_beside_structured_ones_are_the_same_bits(grammars: Grammars) -> None:
    sampler = Sampler(grammars)
    rows = torch.cat([logits(i) for i in range(6)])
    nothing = np.zeros(0, np.int32)
    plain = [
        SampleRequest(SamplingParams(**p), 3, 0, 0, nothing, nothing, (EOS,))
        for p in ({"temperature": 0.0}, {}, {"logprobs": 2}, {"min_tokens": 3})
    ]
    structured = [request(PERSON, [], (b"a", 1)), request(NUMBERS, [], (b"b", 1), temperature=0.0)]
    together = sampler.sample(rows, [structured[0], *plain, structured[1]])
    assert together[1:5] == Sampler().sample(rows[1:5], plain)
    assert [together[0]] == sampler.sample(rows[:1], structured[:1])


def test_both_samplers_draw_the_same_under_masks(grammars: Grammars) -> None:
    rows = torch.cat([logits(i) for i in range(5)]).double()
    wanted = [
        request(PERSON, []),
        request(NUMBERS, [], temperature=0.0),
        request(NUMBERS, [], top_k=3, logprobs=4),
        request(PERSON, [], presence_penalty=1.0, logit_bias={90: 8.0}),
    ]
    plain = request(NUMBERS, [], json_schema=None)
    masks = [grammars.allowed(each) for each in wanted]
    on_cpu = sample_on_cpu(rows, [*wanted, plain], [*masks, None])
    assert on_cpu == sample_on_device(rows, [*wanted, plain], [*masks, None])
    raw = Sampler().sample(rows[2:3], [request(NUMBERS, [], json_schema=None, logprobs=4)])[0]
    assert on_cpu[2].top_logprobs == raw.top_logprobs, "log-probabilities are of the raw logits"


def test_ids_that_break_the_schema_fail_their_request_alone(grammars: Grammars) -> None:
    """As where a client resumes with what another request said."""
    sampler = Sampler(grammars)
    foreign = grammars._trie.tokenize_str("not json")  # type: ignore[attr-defined]
    rows = torch.cat([logits(0), logits(0)])
    first, second = sampler.sample(rows, [request(WORDS, foreign, KEY), request(WORDS, [], KEY)])
    assert first.error is not None and "JSON schema asks" in first.error
    assert second.error is None
    assert draw(sampler, request(WORDS, [], KEY)).error is None


WORDS = {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 4}


def test_an_error_of_ours_fails_one_request_too(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(request: SampleRequest) -> None:
        raise RuntimeError("out of masks")

    sampler = Sampler(grammars)
    monkeypatch.setattr(grammars, "allowed", fail)
    rows = torch.cat([logits(0), logits(1)])
    plain = request(WORDS, [], json_schema=None)
    results = sampler.sample(rows, [request(WORDS, []), plain])
    assert results[0].error is not None and "out of masks" in results[0].error
    assert results[1] == Sampler().sample(rows[1:], [plain])[0]
    assert "no mask" in caplog.text
    without = Sampler().sample(rows, [request(WORDS, []), plain])
    assert "without grammars" in (without[0].error or "") and without[1] == results[1]


def test_bias_against_all_that_is_allowed_is_an_error_of_the_request(grammars: Grammars) -> None:
    one_way = {"const": 1}
    output = grammars._trie.tokenize_str("1")  # type: ignore[attr-defined]
    wanted = request(one_way, output, stop_token_ids=(EOS,))
    assert draw(Sampler(grammars), wanted).token_id == EOS
    banned = SampleRequest(
        SamplingParams(json_schema=text_of(one_way), min_tokens=9),
        *(1, 0, len(output), wanted.prompt_ids, wanted.output_ids, (EOS,)),
    )
    assert "ban every token" in (draw(Sampler(grammars), banned).error or "")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"ignore_eos": True}, "ignore_eos"),
        ({"min_tokens": 2}, "min_tokens"),
        ({"json_schema": " " * (MAX_SCHEMA_BYTES + 1)}, "32768"),
        ({"json_schema": "é" * (MAX_SCHEMA_BYTES // 2 + 1)}, "32770"),
    ],
)
def test_fields_that_contradict_a_schema_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        validate(SamplingParams(**{"json_schema": "{}", **fields}), VOCAB, 1000)
    validate(SamplingParams(json_schema="{}", stop=("a",)), VOCAB, 1000)


def nested(levels: int) -> str:
    return '{"items":' * levels + "{}" + "}" * levels


CHAIN = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(490)} | {"d490": {"type": "null"}}
BAD = {
    "not JSON": ("{", "not JSON"),
    "no object": ("[]", "must be an object"),
    "deep": (nested(MAX_DEPTH), "nests deeper"),
    "as deep as it gets": (nested(3500), "nests deeper"),
    "elsewhere": ('{"$ref": "http://localhost/x"}', "its own parts"),
    "no such part": ('{"$ref": "#/$defs/none"}', "does not exist"),
    "a keyword nobody keeps": ('{"not": {"type": "string"}}', "not"),
    "uniqueItems": ('{"type": "array", "uniqueItems": true}', "uniqueItems"),
    "overlapping oneOf": ('{"oneOf": [{"type": "string"}, {"type": "string"}]}', "use anyOf"),
    "a format": ('{"type": "string", "format": "tea"}', "format"),
    "a regular expression": ('{"type": "string", "pattern": "(a"}', "unclosed"),
    "look-around": ('{"type": "string", "pattern": "(?=a)b"}', "look-around"),
    "a back-reference": ('{"type": "string", "pattern": "(a)\\\\1"}', "backreferences"),
    "large numbers": ('{"allOf": [{"enum": [-1e300]}, {"maximum": 0}]}', "-1e.300"),
    "a number beyond floats": ('{"minimum": 1' + "0" * 400 + "}", "but may have 0 and those"),
    "many remainders": ('{"type": "integer", "multipleOf": 123456789}', "may have 10000"),
    "remainders that multiply": (
        '{"allOf": [{"multipleOf": 997}, {"multipleOf": 0.7}, {"multipleOf": 13}]}',
        "may have 10000",
    ),
    "multiples of nothing": ('{"multipleOf": 0}', "above 0"),
    "a long text at least": (
        '{"type": "string", "pattern": "^", "minLength": 1e9}',
        "may be 10000",
    ),
    "a long list at most": ('{"type": "array", "maxItems": 100001}', "may be 100000"),
    "many references": (json.dumps({"anyOf": [{"$ref": "#"}] * 501}), "may have 500"),
    "nothing keeps it": ('{"type": "integer", "minimum": 5, "maximum": 4}', "kept"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_schemas_are_refused_at_once_everywhere(grammars: Grammars, name: str) -> None:
    schema, words = BAD[name]
    started = time.monotonic()
    with pytest.raises(ValueError, match=words):
        require_compilable(schema)
    with pytest.raises(ValueError, match=words):
        grammars.prepare(schema)
    assert not grammars.is_prepared(schema)
    assert time.monotonic() - started < 10  # milliseconds each


EVIL = {
    "nested repeats": {"type": "string", "pattern": "^(([a-z]+)+)+$", "maxLength": 40},
    "alternatives": {"type": "string", "pattern": "^(a|aa|aaa|a?){1,60}b$"},
    "repeated repeats": {"type": "string", "pattern": "((a{900}){900}){900}"},
    "remainders": {"type": "integer", "multipleOf": 9973},
    "counts": {"type": "string", "pattern": "^.*a.{200}$"},
    "a chain of references": {"$ref": "#/$defs/d0", "$defs": CHAIN},
    "recursion": {
        "$ref": "#/$defs/t",
        "$defs": {"t": {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/t"}}, WORDS]}},
    },
    "many properties": {
        "type": "object",
        "properties": {f"p{i}": {"type": "string", "maxLength": 3} for i in range(400)},
    },
    "many alternatives": {"enum": [f"{i * 7919:x}" for i in range(2000)]},
}


@pytest.mark.parametrize("name", EVIL)
def test_evil_schemas_are_refused_or_followed_in_bounded_time(
    grammars: Grammars, name: str
) -> None:
    schema, sampler = EVIL[name], Sampler(grammars)
    started = time.monotonic()
    try:
        require_compilable(text_of(schema))
        grammars.prepare(text_of(schema))
    except ValueError as error:
        print(f"{name}: refused, {error}")
        return
    print(f"{name}: compiled twice in {time.monotonic() - started:.3f} s")
    output: list[int] = []
    longest = 0.0
    while len(output) < 40:
        began = time.monotonic()
        sampled = draw(sampler, request(schema, output, KEY))
        longest = max(longest, time.monotonic() - began)
        if sampled.error is not None or sampled.token_id == EOS:
            break
        output.append(sampled.token_id)
    print(f"{name}: {len(output)} tokens, the slowest after {longest:.4f} s")
    grammars.forget(KEY)
    assert time.monotonic() - started < 15


def test_what_is_remembered_is_bounded(
    grammars: Grammars, demo_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar, "MAX_GRAMMARS", 3)
    monkeypatch.setattr(grammar, "MAX_MATCHERS", 4)
    own = Grammars(demo_model, VOCAB, (EOS,))
    sampler = Sampler(own)
    for number in range(6):
        draw(sampler, request({"const": number}, [], (b"r", number + 1)))
    assert [own.is_prepared(text_of({"const": n})) for n in range(6)] == [False] * 3 + [True] * 3
    assert list(own._followed) == [(b"r", n) for n in (3, 4, 5, 6)]  # type: ignore[attr-defined]
    output = own._trie.tokenize_str("5")  # type: ignore[attr-defined]
    assert draw(sampler, request({"const": 5}, output, (b"r", 6))).token_id == EOS
    draw(sampler, request({"const": 4}, [], (b"r", 5), max_tokens=1))
    assert list(own._followed) == [(b"r", n) for n in (3, 4)], "ended ones are forgotten"  # type: ignore[attr-defined]


def test_without_the_library_the_refusal_says_what_to_install(
    demo_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    own = Grammars(demo_model, VOCAB, (EOS,))
    assert not own.load()
    with pytest.raises(NoGrammarLibraryError, match=r"pip install 'tandem-serve\[structured\]'"):
        own.prepare("{}")
    with pytest.raises(NoGrammarLibraryError):
        require_compilable("{}")


def test_a_model_without_an_end_or_a_readable_tokenizer_refuses_schemas(
    demo_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its nodes start all the same: others' requests need neither."""
    (tmp_path / "tokenizer.json").write_text("{}")
    for own, words in (
        (Grammars(demo_model, VOCAB, ()), "eos_token_id"),
        (Grammars(tmp_path, VOCAB, (EOS,)), "cannot read"),
        (Grammars(tmp_path / "none", VOCAB, (EOS,)), "cannot read"),
    ):
        assert not own.load()
        assert words in caplog.text
        with pytest.raises(ValueError, match=words):
            own.prepare("{}")


def test_a_model_with_more_rows_than_tokens_and_the_reverse(demo_model: Path) -> None:
    """Checkpoints pad their embeddings; what no token stands for is never allowed."""
    wide = Grammars(demo_model, VOCAB + 100, (EOS,)).allowed(request(NUMBERS, []))
    narrow = Grammars(demo_model, 300, (EOS,)).allowed(request(NUMBERS, []))
    assert len(wide) == VOCAB + 100 and not wide[VOCAB:].any()
    assert len(narrow) == 300 and (narrow == wide[:300]).all()
