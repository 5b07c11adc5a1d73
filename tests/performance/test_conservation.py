"""Whatever the policies: every request ends exactly once, and every page comes back."""

import pytest

from scheduling.batch.catalogue import BATCH_POLICIES
from scheduling.prefill.catalogue import PREFILL_POLICIES
from scheduling.routing.catalogue import PLACEMENT_POLICIES
from simulator.performance.scenario import simulate
from tests.performance.conftest import make_profile, make_scenario

SCARCE = make_profile(num_pages=150, max_num_seqs=4)


def check(result) -> None:
    assert [r.num_ends for r in result.requests] == [1] * len(result.requests)
    for request in result.requests:
        if request.refusal is None:
            assert request.arrived_at < request.first_token_at <= request.finished_at
    assert result.num_pages_left == 0


@pytest.mark.parametrize("policy", sorted(BATCH_POLICIES))
@pytest.mark.parametrize("layout", ["1p1d", "2m"])
def test_batch_policies(policy, layout):
    changes = {"profile": SCARCE, "batch_policy": policy, "num_requests": 60}
    result = simulate(make_scenario(layout, rate=10.0, predictor_sigma=0.5, **changes))
    check(result)
    # Who wants to preempt a request that just came back is not obeyed, and then has too many rows.
    assert result.num_illegal_plans == 0 or not BATCH_POLICIES[policy].non_preemptive


@pytest.mark.parametrize("reserve", ["predicted", "none"])
@pytest.mark.parametrize("policy", ["fifo", "sarathi", "srpt"])
def test_requests_that_are_promised_less_give_way_and_come_back(policy, reserve):
    result = simulate(
        make_scenario(
            "2m",
            rate=30.0,
            profile=make_profile(num_pages=100),
            batch_policy=policy,
            reserve=reserve,
            predictor_sigma=1.0,
            num_requests=80,
        )
    )
    check(result)
    if reserve == "none":
        assert result.summary()["num_preemptions"] > 0


@pytest.mark.parametrize("policy", sorted(PREFILL_POLICIES))
def test_prefill_policies(policy):
    check(simulate(make_scenario("1p1d", rate=20.0, num_requests=60, prefill_policy=policy)))


@pytest.mark.parametrize("policy", sorted(PLACEMENT_POLICIES))
def test_placement_policies(policy):
    scenario = make_scenario("2p2d1m", rate=40.0, num_requests=100, placement_policy=policy)
    check(simulate(scenario))


def test_overload_is_refused_not_lost():
    result = simulate(make_scenario("1p1d", rate=500.0, max_queued_tokens_per_node=500))
    check(result)
    assert result.summary()["num_refused"] > 20


def test_who_can_still_be_in_time_waits_for_room():
    """A burst beyond the queue limits: the coordinator's queue saves those that have the time."""
    changes = {"rate": 60.0, "max_queued_tokens_per_node": 500, "process": "mmpp", "seed": 4}
    holding, refusing = (
        simulate(make_scenario("1p1d", max_held_requests=held, **changes)) for held in (1000, 0)
    )
    check(holding)
    check(refusing)
    assert holding.summary()["num_refused"] < refusing.summary()["num_refused"]


def test_what_does_not_end_in_time_is_told():
    result = simulate(make_scenario("1p1d", rate=500.0, drain_s=0.01))
    summary = result.summary()
    assert summary["num_unfinished"] > 0
    total = summary["num_finished"] + summary["num_refused"] + summary["num_unfinished"]
    assert total == summary["num_requests"]
