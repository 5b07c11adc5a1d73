"""Features of requests: what they count, in any language, whatever the bytes."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.features import FEATURES, features
from tandem.frames import Blob, TokenIds
from tandem.messages.client import ChatMessage, Submit
from tandem.sampling import SamplingParams


def prompt(text: str) -> Submit:
    return Submit(label="x", prompt=Blob(text.encode()))


def chat(text: str) -> Submit:
    return Submit(label="x", chat=(ChatMessage(role="user", content=text),))


def look(submit: Submit) -> dict[str, float]:
    row = features(submit, num_prompt_tokens=7, max_tokens=100, table_q50=33.0)
    return dict(zip(FEATURES, row, strict=True))


@pytest.mark.parametrize("make", [prompt, chat])
@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("Write 200 words about 3 cats", "log_asked", math.log1p(200)),
        ("用 50 字回答", "log_asked", math.log1p(50)),
        ("Schreibe 30 Sätze", "log_asked", math.log1p(30)),
        ("In 1999 people", "log_asked", math.log1p(1999)),
        ("It cost 99999 euros", "log_asked", 0.0),
        ("Why? And why?", "log_questions", math.log1p(2)),
        ("なぜ？", "ends_with_question", 1.0),
        ("Why. ", "ends_with_question", 0.0),
        ("a1b2", "digits", 0.5),
        ("aB", "capitals", 0.5),
        ("a.", "punctuation", 0.5),
        ("añ", "foreign", 0.5),
        ("f()", "code_symbols", 2 / 3),
        ("```\nx\n```", "log_code_fences", math.log1p(2)),
        ("- a\n- b\n2. c", "log_list_items", math.log1p(3)),
        ("a\nbcd", "log_lines", math.log1p(1)),
        ("a\nbcd", "log_last_line_chars", math.log1p(3)),
        ("ab abcd", "chars_per_word", 3.0),
    ],
)
def test_what_is_counted(make: Callable[[str], Submit], text: str, name: str, value: float) -> None:
    assert look(make(text))[name] == pytest.approx(value)


def test_what_is_known_without_text() -> None:
    params = SamplingParams(temperature=0.25, stop=("x",))
    row = look(Submit(label="x", prompt_ids=TokenIds([1, 2]), params=params))
    assert row["log_table"] == pytest.approx(math.log1p(33))
    assert row["log_max_tokens"] == pytest.approx(math.log1p(100))
    assert row["log_prompt_tokens"] == pytest.approx(math.log1p(7))
    assert (row["temperature"], row["has_stop"], row["has_text"]) == (0.25, 1.0, 0.0)


def test_first_words_go_to_buckets_whatever_their_case() -> None:
    assert look(prompt("Write it"))["first_word"] == look(prompt(" write that"))["first_word"]
    buckets = {look(prompt(f"w{n}"))["first_word"] for n in range(300)}
    assert buckets == {float(n) for n in range(16)}


def test_the_last_turn_is_the_instruction() -> None:
    turns = (
        ChatMessage(role="user", content="Write 500 words"),
        ChatMessage(role="assistant", content="Here"),
        ChatMessage(role="user", content="Now 20 words"),
    )
    assert look(Submit(label="x", chat=turns))["log_asked"] == pytest.approx(math.log1p(20))


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_whatever_is_said_features_are_finite(text: str) -> None:
    for make in (prompt, chat):
        try:
            submit = make(text * 200)
        except UnicodeEncodeError:
            continue
        assert all(map(math.isfinite, look(submit).values()))


def test_bytes_that_are_no_text_are_no_error() -> None:
    row = look(Submit(label="x", prompt=Blob(b"\xff\xfe" * 9000 + b"\x80 7 words")))
    assert all(map(math.isfinite, row.values()))
