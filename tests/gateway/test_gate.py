"""The gate before the tokenizer: what overload costs, and that it leaves no capacity idle."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.gate import (
    ASKS_PER_PLACED,
    MAX_DOORS,
    PROBES_PER_S,
    SHUT_S,
    OverloadGate,
    Wish,
)


def wish(**changes: Any) -> Wish:
    plain = {
        "tenant": "default",
        "sla_class": "standard",
        "ttft_ms": None,
        "tpot_ms": None,
        "priority": 0,
        "num_bytes": 1000,
    }
    return Wish(**{**plain, **changes})


def shut(gate: OverloadGate, now: float = 0.0, retry_after_s: float = 20.0, **changes: Any) -> None:
    """A request asks, and is refused."""
    gate.asked(b"first", wish(**changes))
    gate.refused(b"first", retry_after_s, now)


def test_nobody_is_refused_before_somebody_was() -> None:
    gate = OverloadGate()
    for number in range(100):
        assert gate.wait_s(wish(), 0.0) is None
        gate.asked(bytes([number]), wish())
        gate.placed(bytes([number]), 0.0)
    assert gate.num_refused == 0


def test_after_a_refusal_others_hear_what_is_left_of_its_wait() -> None:
    gate = OverloadGate()
    shut(gate, now=5.0, retry_after_s=20.0)
    assert gate.wait_s(wish(), 5.0) == 20.0
    assert gate.wait_s(wish(), 5.2) == pytest.approx(19.8)
    assert gate.num_refused == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"tenant": "other"},
        {"sla_class": "interactive"},
        {"sla_class": None},
        {"ttft_ms": 9000.0},
        {"tpot_ms": 9000.0},
        {"priority": 1},
        {"num_bytes": 999},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_who_asks_for_something_else_or_for_less_is_not_meant(changes: dict[str, Any]) -> None:
    gate = OverloadGate()
    shut(gate)
    assert gate.wait_s(wish(**changes), 0.0) is None
    assert gate.wait_s(wish(priority=-1, num_bytes=5000), 0.0) is not None


def test_the_easiest_that_was_refused_counts() -> None:
    gate = OverloadGate()
    shut(gate, priority=0, num_bytes=1000)
    shut(gate, priority=2, num_bytes=3000)
    assert gate.wait_s(wish(priority=2, num_bytes=1000), 0.0) is not None
    assert gate.wait_s(wish(priority=3, num_bytes=1000), 0.0) is None
    assert gate.wait_s(wish(priority=2, num_bytes=999), 0.0) is None


def test_the_door_opens_soon_after_the_last_refusal_whatever_the_wait() -> None:
    gate = OverloadGate()
    shut(gate, retry_after_s=30.0)
    assert gate.wait_s(wish(), 0.0) is not None
    assert all(gate.wait_s(wish(), SHUT_S) is None for _ in range(100))
    shut(gate, now=10.0, retry_after_s=0.5)
    assert gate.wait_s(wish(), 10.0) is not None
    assert all(gate.wait_s(wish(), 10.5) is None for _ in range(100))


def test_every_placement_lets_two_more_ask_and_a_probe_goes_every_quarter_second() -> None:
    gate = OverloadGate()
    shut(gate)
    assert gate.wait_s(wish(), 0.0) is not None
    assert gate.wait_s(wish(), 1.01 / PROBES_PER_S) is None
    gate.asked(b"probe", wish())
    gate.placed(b"probe", 0.26)
    asked = [gate.wait_s(wish(), 0.26) is None for _ in range(10)]
    assert sum(asked) == ASKS_PER_PLACED


def test_a_late_answer_and_one_to_nobody_change_nothing() -> None:
    gate = OverloadGate()
    gate.refused(b"unknown", 20.0, 0.0)
    gate.placed(b"unknown", 0.0)
    gate.asked(b"gone", wish())
    gate.forget(b"gone")
    gate.refused(b"gone", 20.0, 0.0)
    assert gate.wait_s(wish(), 0.0) is None


def test_doors_are_bounded() -> None:
    gate = OverloadGate()
    for number in range(MAX_DOORS + 1):
        shut(gate, tenant=str(number))
    assert gate.wait_s(wish(tenant="0"), 0.0) is None
    assert gate.wait_s(wish(tenant=str(MAX_DOORS)), 0.0) is not None


EVENTS = st.lists(
    st.tuples(st.floats(0.0, 0.5), st.booleans(), st.floats(0.5, 30.0)), min_size=1, max_size=200
)


@given(EVENTS)
def test_what_is_asked_is_bounded_from_above_and_below(
    events: list[tuple[float, bool, float]],
) -> None:
    gate, now, last_ask = OverloadGate(), 0.0, 0.0
    num_asked = num_placed = 0
    shut(gate)
    last_refusal, retry_s = 0.0, 20.0
    for number, (gap_s, is_placed, retry_after_s) in enumerate(events):
        now += gap_s
        wait_s = gate.wait_s(wish(), now)
        if now >= last_refusal + min(SHUT_S, retry_s):
            assert wait_s is None
            break
        if wait_s is not None:
            assert 0.5 <= wait_s <= 30.0
            assert now - last_ask < 1 / PROBES_PER_S + 1e-9
            continue
        last_ask = now
        num_asked += 1
        request_id = number.to_bytes(2, "big")
        gate.asked(request_id, wish())
        if is_placed:
            num_placed += 1
            gate.placed(request_id, now)
        else:
            gate.refused(request_id, retry_after_s, now)
            last_refusal, retry_s = now, retry_after_s
    assert num_asked <= now * PROBES_PER_S + ASKS_PER_PLACED * num_placed + 1e-6
