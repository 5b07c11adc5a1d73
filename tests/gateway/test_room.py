"""Room in a gateway: limits, shares by weight under overload, waits from the rate of endings."""

import random

import pytest

from gateway.admission import Rejected
from gateway.room import ACTIVE_S, MAX_RETRY_S, EndRate, Room

WEIGHTS = {"a": 3.0, "b": 1.0, "c": 1.0}


def make_room(max_live: int = 100, max_bytes: int = 1 << 30) -> Room:
    return Room(max_live=max_live, max_bytes=max_bytes, weight=lambda name: WEIGHTS[name])


class Crowd:
    """Requests that come, stay and end."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.live: list[tuple[bytes, str]] = []
        self.num = 0
        self.now = 0.0

    def offer(self, tenant: str, num_bytes: int = 10) -> Rejected | None:
        try:
            self.room.check(tenant, num_bytes, None, self.now)
        except Rejected as rejected:
            return rejected
        self.num += 1
        request_id = self.num.to_bytes(16, "big")
        self.room.take(request_id, tenant, num_bytes)
        self.live.append((request_id, tenant))
        return None

    def end(self, at: int = 0) -> None:
        request_id, _ = self.live.pop(at)
        self.room.release(request_id, self.now, has_run=True)


@pytest.mark.parametrize("demand", [("a", "b", "c"), ("a", "b"), ("b", "c")])
def test_greedy_tenants_come_to_share_by_weight(demand: tuple[str, ...]) -> None:
    rng = random.Random(1)
    crowd = Crowd(make_room())
    for _ in range(4000):
        crowd.now += 0.01
        # The lighter the tenant, the greedier: weights must hold against demand.
        for name in demand:
            for _ in range(3 if name == "a" else 9):
                crowd.offer(name)
        for _ in range(rng.randrange(1, 4)):
            if crowd.live:
                crowd.end(rng.randrange(len(crowd.live)))
    total = sum(WEIGHTS[name] for name in demand)
    for name in demand:
        share = crowd.room.num_live(name) / len(crowd.room)
        assert share == pytest.approx(WEIGHTS[name] / total, rel=0.2)


def test_a_tenant_alone_may_use_all_and_none_is_shed_for_others() -> None:
    crowd = Crowd(make_room())
    while crowd.offer("b") is None:
        pass
    assert crowd.room.num_live("b") == 100
    crowd.now += 1
    refused = crowd.offer("a")
    assert refused is not None and refused.code == "overloaded"
    assert "--max-live-requests" in str(refused)
    crowd.end()
    refused = crowd.offer("b")
    assert refused is not None and "share" in str(refused), "the place is another's"
    assert crowd.offer("a") is None
    crowd.now += ACTIVE_S + 1
    crowd.end()
    assert crowd.offer("b") is None, "who asks no more holds nothing back"
    assert len(crowd.room) == 100


def test_below_half_of_the_limit_nobody_is_held_to_a_share() -> None:
    crowd = Crowd(make_room())
    assert crowd.offer("a") is None
    assert all(crowd.offer("b") is None for _ in range(49))
    assert crowd.offer("b") is not None


def test_bytes_are_shared_and_limited_too() -> None:
    crowd = Crowd(make_room(max_bytes=1000))
    assert crowd.offer("a", 100) is None
    assert crowd.offer("b", 200) is None
    refused = crowd.offer("b", 300)
    assert refused is not None and "bytes" in str(refused)
    refused = crowd.offer("a", 800)
    assert refused is not None and "--max-prompt-mib" in str(refused)
    crowd.room.resize(crowd.live[1][0], 20)
    assert crowd.room.num_bytes == 120
    assert crowd.offer("b", 180) is None


def test_the_smallest_share_is_one_request() -> None:
    crowd = Crowd(make_room(max_live=4))
    for _ in range(3):
        crowd.offer("a")
    assert crowd.offer("b") is None


def test_a_tenants_own_limit_holds() -> None:
    crowd = Crowd(make_room())
    crowd.offer("b")
    with pytest.raises(Rejected, match="may have 1"):
        crowd.room.check("b", 1, 1, crowd.now)


def test_what_ends_is_given_back_once() -> None:
    crowd = Crowd(make_room())
    crowd.offer("a", 70)
    request_id, _ = crowd.live[0]
    crowd.end()
    crowd.room.release(request_id, 1.0, has_run=True)
    crowd.room.resize(request_id, 5)
    assert (len(crowd.room), crowd.room.num_bytes, crowd.room.num_live("a")) == (0, 0, 0)


def test_waits_follow_the_rate_of_endings_one_place_each() -> None:
    rate = EndRate()
    assert rate.retry_after_s(0.0) == 1.0
    for step in range(100):
        rate.note_end(step / 10)
    waits = [rate.retry_after_s(10.0) for _ in range(20)]
    assert waits == pytest.approx([0.1 * (n + 1) for n in range(20)], rel=0.1)
    assert rate.retry_after_s(11.0) == pytest.approx(1.1, rel=0.15)
    for _ in range(1000):
        wait_s = rate.retry_after_s(11.0)
    assert wait_s == MAX_RETRY_S
    assert rate.retry_after_s(100.0) == 1.0
