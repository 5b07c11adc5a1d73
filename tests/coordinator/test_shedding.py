"""Who is refused under overload, for how long, and who is not."""

from collections import Counter

import pytest

from coordinator.config import CoordinatorConfig
from coordinator.shedding import RecentFlow, TenantShares


@pytest.fixture
def small(make_cluster):
    """One node per role that computes 2 sequences, with queues of 400 tokens and 3 requests."""
    made = make_cluster(
        max_queued_tokens_per_node=400, max_queued_requests_per_node=3, max_held_requests=0
    )
    made.greet()
    made.join("p0", "prefill", num_pages=1000)
    made.join("d0", "decode", num_pages=1000, max_num_seqs=2)
    made.beat("p0", num_pages=1000)
    made.beat("d0", num_pages=1000)
    return made


def codes(answers) -> str:
    (answer,) = answers
    return getattr(answer, "code", "placed")


def test_prompts_beyond_the_queue_are_refused_at_once_with_a_time(small) -> None:
    assert [codes(small.place(i)) for i in range(5)] == ["placed"] * 4 + ["overloaded"]
    (refusal,) = small.place(5)
    assert 0.5 <= refusal.retry_after_s <= 30
    assert "launch_prefill" in refusal.message
    assert small.status().num_shed == 2


def test_sequences_beyond_slots_and_queue_are_refused(small) -> None:
    answers = [small.place(i, num_prompt_tokens=1, max_output_tokens=9) for i in range(7)]
    assert [codes(a) for a in answers] == ["placed"] * 5 + ["overloaded"] * 2
    small.end(0)
    assert codes(small.place(7, num_prompt_tokens=1, max_output_tokens=9)) == "placed"


def test_promised_pages_count_before_the_node_begins(small) -> None:
    small.join("d1", "decode", num_pages=10, max_num_seqs=100)
    small.send("d0", small.heartbeat("d0", draining=True, counts={"num_pages": 1000}))
    places = [small.place(i, num_prompt_tokens=32, max_output_tokens=32) for i in range(8)]
    # Two of four pages each run, three more wait, for which 12 pages are missing.
    assert Counter(codes(a) for a in places) == {"placed": 5, "overloaded": 3}
    small.pass_time(0.6)
    small.beat("d1", num_pages=10, used=8)
    assert codes(small.place(9, num_prompt_tokens=32, max_output_tokens=32)) == "overloaded"


def test_fail_overs_and_moves_are_never_shed(small) -> None:
    small.join("d1", "decode", num_pages=1000, max_num_seqs=1)
    for i in range(30):
        assert codes(small.place(i, attempt=2)) == "placed"
    assert codes(small.place(50, attempt=1)) == "overloaded"
    assert codes(small.place(0, attempt=3, move_from="d0")) == "placed"


def test_a_tenant_below_its_share_is_admitted_while_there_is_hard_room(small) -> None:
    greedy = [codes(small.place(i, tenant="greedy")) for i in range(10)]
    assert greedy == ["placed"] * 4 + ["overloaded"] * 6
    modest = [codes(small.place(i, tenant="modest")) for i in range(20, 30)]
    assert modest == ["placed"] * 4 + ["overloaded"] * 6
    assert codes(small.place(40, tenant="third")) == "overloaded"  # twice the limit is the end


def test_what_a_tenant_had_does_not_count_against_it(small) -> None:
    for i in range(4):
        small.place(i, tenant="modest")
    for i in range(4):
        small.end(i)
    for i in range(10, 20):
        small.place(i, tenant="greedy")
    assert codes(small.place(30, tenant="modest")) == "placed"


def test_weights_divide_what_is_there(small) -> None:
    """Two tenants that always ask share twice the queue by their weights."""
    live: dict[str, list[int]] = {"a": [], "b": []}
    number = 0
    for _ in range(60):
        for tenant, weight in (("a", 3.0), ("b", 1.0)):
            number += 1
            (answer,) = small.place(number, tenant=tenant, tenant_weight=weight)
            if not hasattr(answer, "code"):
                live[tenant].append(number)
        if number % 6 == 0:  # the oldest of all ends
            oldest = min(live, key=lambda name: live[name][0] if live[name] else 10**9)
            small.end(live[oldest].pop(0))
    assert len(live["a"]) + len(live["b"]) <= 8
    assert len(live["a"]) >= 2.4 * len(live["b"])
    assert live["b"]


def test_retry_after_follows_the_pace_of_endings() -> None:
    flow = RecentFlow()
    flow.note_shed(0.0)
    assert flow.retry_after_s(0.0) == 5.0  # nothing has ended: unknown
    for tenth in range(50):
        flow.note_ended(tenth / 10)
    assert flow.retry_after_s(5.0) == 0.5
    for _ in range(40):
        flow.note_shed(5.0)
    assert flow.retry_after_s(5.0) == pytest.approx(41 / 10, rel=0.2)
    assert flow.retry_after_s(11.0) > 5
    assert flow.retry_after_s(60.0) == 5.0


def test_retry_after_is_bounded() -> None:
    flow = RecentFlow()
    flow.note_ended(0.0)
    for _ in range(10_000):
        flow.note_shed(1.0)
    assert flow.retry_after_s(1.0) == 30.0


def test_shares_are_divided_among_tenants_that_have_something() -> None:
    shares = TenantShares()
    assert not shares.is_below("a", 1.0)
    shares.add("a", 1.0)
    assert not shares.is_below("a", 1.0)  # alone it has all
    assert shares.is_below("b", 1.0)
    assert not shares.is_below("b", 0.0)
    shares.add("b", 1.0)
    assert not shares.is_below("b", 1.0)
    assert shares.is_below("b", 2.0)
    shares.remove("a")
    assert not shares.is_below("b", 2.0)


@pytest.mark.parametrize("name", ["max_queued_tokens_per_node", "max_queued_requests_per_node"])
def test_limits_are_above_zero(name) -> None:
    with pytest.raises(ValueError) as caught:
        CoordinatorConfig(**{name: 0})
    assert name.replace("_", "-") in str(caught.value)
