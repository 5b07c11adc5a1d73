"""The gate before the tokenizer: what overload costs, and that it leaves no capacity idle."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import gate
from gateway.gate import (
    ASKS_PER_PLACED,
    MAX_DOORS,
    PROBES_PER_S,
    SHUT_S,
    OverloadGate,
    Wish,
)
from tandem.messages.placement import Place, PlaceRefused
from tests.gateway.deployment import Client, Cluster, running_cluster, running_gateway


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


def shut(door: OverloadGate, now: float = 0.0, retry_after_s: float = 20.0, **changes: Any) -> None:
    """A request asks, and is refused."""
    door.asked(b"first", wish(**changes))
    door.refused(b"first", retry_after_s, now)


def test_nobody_is_refused_before_somebody_was() -> None:
    door = OverloadGate()
    for number in range(100):
        assert door.wait_s(wish(), 0.0) is None
        door.asked(bytes([number]), wish())
        door.placed(bytes([number]), 0.0)
    assert door.num_refused == {}


def test_after_a_refusal_others_hear_what_is_left_of_its_wait() -> None:
    door = OverloadGate()
    shut(door, now=5.0, retry_after_s=20.0)
    assert door.wait_s(wish(), 5.0) == 20.0
    assert door.wait_s(wish(), 5.2) == pytest.approx(19.8)
    assert door.num_refused == {"standard": 2}


def test_a_look_spends_no_right_to_ask() -> None:
    door = OverloadGate()
    shut(door)
    assert door.look(wish(), 0.1) == pytest.approx(19.9)
    assert [door.look(wish(), 0.25) for _ in range(3)] == [None] * 3
    assert door.look(wish(num_bytes=10), 0.1) is None
    assert door.wait_s(wish(), 0.25) is None, "a probe"
    assert door.look(wish(), 0.25) is not None


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
    door = OverloadGate()
    shut(door)
    assert door.wait_s(wish(**changes), 0.0) is None
    assert door.wait_s(wish(priority=-1, num_bytes=5000), 0.0) is not None


def test_the_easiest_that_was_refused_counts() -> None:
    door = OverloadGate()
    shut(door, priority=0, num_bytes=1000)
    shut(door, priority=2, num_bytes=3000)
    assert door.wait_s(wish(priority=2, num_bytes=1000), 0.0) is not None
    assert door.wait_s(wish(priority=3, num_bytes=1000), 0.0) is None
    assert door.wait_s(wish(priority=2, num_bytes=999), 0.0) is None


def test_the_door_opens_soon_after_the_last_refusal_whatever_the_wait() -> None:
    door = OverloadGate()
    shut(door, retry_after_s=30.0)
    assert door.wait_s(wish(), 0.0) is not None
    assert all(door.wait_s(wish(), SHUT_S) is None for _ in range(100))
    shut(door, now=10.0, retry_after_s=0.5)
    assert door.wait_s(wish(), 10.0) is not None
    assert all(door.wait_s(wish(), 10.5) is None for _ in range(100))


def test_every_placement_lets_two_more_ask_and_a_probe_goes_every_quarter_second() -> None:
    door = OverloadGate()
    shut(door)
    assert door.wait_s(wish(), 0.0) is not None
    assert door.wait_s(wish(), 1.01 / PROBES_PER_S) is None
    door.asked(b"probe", wish())
    door.placed(b"probe", 0.26)
    asked = [door.wait_s(wish(), 0.26) is None for _ in range(10)]
    assert sum(asked) == ASKS_PER_PLACED


def test_a_late_answer_and_one_to_nobody_change_nothing() -> None:
    door = OverloadGate()
    door.refused(b"unknown", 20.0, 0.0)
    door.placed(b"unknown", 0.0)
    door.asked(b"gone", wish())
    door.forget(b"gone")
    door.refused(b"gone", 20.0, 0.0)
    assert door.wait_s(wish(), 0.0) is None


def test_doors_are_bounded() -> None:
    door = OverloadGate()
    for number in range(MAX_DOORS + 1):
        shut(door, tenant=str(number))
    assert door.wait_s(wish(tenant="0"), 0.0) is None
    assert door.wait_s(wish(tenant=str(MAX_DOORS)), 0.0) is not None


EVENTS = st.lists(
    st.tuples(st.floats(0.0, 0.5), st.booleans(), st.floats(0.5, 30.0)), min_size=1, max_size=200
)


@given(EVENTS)
def test_what_is_asked_is_bounded_from_above_and_below(
    events: list[tuple[float, bool, float]],
) -> None:
    door, now, last_ask = OverloadGate(), 0.0, 0.0
    num_asked = num_placed = 0
    shut(door)
    last_refusal, retry_s = 0.0, 20.0
    for number, (gap_s, is_placed, retry_after_s) in enumerate(events):
        now += gap_s
        wait_s = door.wait_s(wish(), now)
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
        door.asked(request_id, wish())
        if is_placed:
            num_placed += 1
            door.placed(request_id, now)
        else:
            door.refused(request_id, retry_after_s, now)
            last_refusal, retry_s = now, retry_after_s
    assert num_asked <= now * PROBES_PER_S + ASKS_PER_PLACED * num_placed + 1e-6


def test_behind_a_shut_door_neither_tokenizer_nor_coordinator_is_asked(
    served_model: Any, make_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a gateway on real sockets; without probes, so that its speed does not matter."""
    monkeypatch.setattr(gate, "SHUT_S", 60.0)
    monkeypatch.setattr(gate, "PROBES_PER_S", 0.0)

    async def main() -> None:
        async with running_cluster(make_world()) as cluster:
            monkeypatch.setattr(cluster, "_placed", overloaded)
            async with running_gateway(cluster, served_model) as address:
                client = Client(cluster.context, address)
                try:
                    await scenario(cluster, client)
                finally:
                    client.close()

    async def scenario(cluster: Cluster, client: Client) -> None:
        await client.submit("def f", label="first")
        _, _, _, done = await client.answer()
        assert (done["code"], done["retry_after_s"]) == ("overloaded", 40.0)
        for number in range(20):
            await client.submit("def f", label=str(number))
        refused = [await client.hear() for _ in range(20)]
        assert {(each["type"], each["code"]) for each in refused} == {("Refused", "overloaded")}
        assert all(0 < each["retry_after_s"] <= 40 for each in refused)
        assert len(cluster.places) == 1
        await client.submit("f", label="smaller")
        await client.answer()
        assert len(cluster.places) == 2

    asyncio.run(main())


def overloaded(place: Place) -> PlaceRefused:
    return PlaceRefused(
        request_id=place.request_id,
        attempt=place.attempt,
        code="overloaded",
        message="all nodes are full",
        retry_after_s=40.0,
    )
