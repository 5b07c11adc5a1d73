"""Calls that come again."""

import pytest

from gateway.http.errors import ApiError
from gateway.openai.idempotency import KEPT_S, RepeatedCalls


def test_the_same_call_gets_the_same_answer_for_a_minute() -> None:
    calls: RepeatedCalls[str] = RepeatedCalls()
    assert calls.find("me", "k", b"body", 0.0) is None
    calls.enter("me", "k", b"body", "first", 0.0)
    assert calls.find("me", "k", b"body", 1.0) == "first"
    assert calls.find("me", "k", b"body", KEPT_S + 1) == "first"  # it still runs
    calls.finish("me", "k", 10)
    assert calls.find("me", "k", b"body", KEPT_S - 1) == "first"
    assert calls.find("me", "k", b"body", KEPT_S + 1) is None
    assert len(calls) == 0


def test_callers_do_not_share_keys() -> None:
    calls: RepeatedCalls[str] = RepeatedCalls()
    calls.enter("me", "k", b"body", "mine", 0.0)
    assert calls.find("you", "k", b"body", 1.0) is None
    assert calls.find(None, "k", b"body", 1.0) is None


def test_another_body_under_the_same_key_is_refused() -> None:
    calls: RepeatedCalls[str] = RepeatedCalls()
    calls.enter(None, "k", b"body", "first", 0.0)
    with pytest.raises(ApiError) as caught:
        calls.find(None, "k", b"other", 1.0)
    assert (caught.value.status, caught.value.code) == (400, "idempotency_key_reused")


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_keys_have_bounds(key: str) -> None:
    with pytest.raises(ApiError):
        RepeatedCalls[str]().find(None, key, b"", 0.0)


def test_memory_has_bounds() -> None:
    calls: RepeatedCalls[int] = RepeatedCalls(max_entries=3, max_bytes=100)
    for number in range(5):
        calls.enter(None, str(number), b"", number, float(number))
    assert len(calls) == 3  # those that run are not forgotten, so new ones are not remembered
    assert calls.find(None, "4", b"", 5.0) is None
    calls.finish(None, "0", 60)
    calls.finish(None, "1", 60)
    assert calls.find(None, "0", b"", 5.0) is None  # together they were too large
    assert calls.find(None, "1", b"", 5.0) == 1
    calls.enter(None, "5", b"", 5, 5.0)
    calls.enter(None, "6", b"", 6, 6.0)
    assert calls.find(None, "1", b"", 6.0) is None  # it made room
    assert calls.find(None, "6", b"", 6.0) == 6


def test_what_failed_is_forgotten() -> None:
    calls: RepeatedCalls[int] = RepeatedCalls()
    calls.enter(None, "k", b"", 1, 0.0)
    calls.forget(None, "k")
    calls.forget(None, "k")
    calls.finish(None, "k", 5)
    assert calls.find(None, "k", b"", 0.0) is None
