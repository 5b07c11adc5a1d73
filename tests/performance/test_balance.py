"""Roles that follow the load, and early rejection, in the simulator."""

import itertools
import random

import pytest

from loadgen.traces import Trace, TraceRequest
from scheduling.balance import num_at_once
from simulator.performance.arrivals import Load
from simulator.performance.profiles import Regime
from simulator.performance.results import Result
from simulator.performance.scenario import Scenario, parse_layout, simulate
from tests.performance.conftest import make_profile, make_scenario

# 1,000 prompt tokens/s; 16 rows in 36 ms: few requests keep twenty nodes busy.
SLOW = make_profile(
    regimes=(
        Regime(prefill_base_s=0.01, decode_base_s=0.02, prefill_token_s=1e-3, decode_row_s=1e-3),
    )
)
STEP_S, END_S = 15.0, 45.0
RATE_PER_S = 13.0
DWELL_S = 5.0


def step_change(seed: int, **changes) -> Scenario:
    """Twenty nodes whose load turns from long prompts to long answers."""
    rng = random.Random(seed)
    times = itertools.accumulate(rng.expovariate(RATE_PER_S) for _ in itertools.count())
    requests = tuple(
        TraceRequest(at, 500, 8) if at < STEP_S else TraceRequest(at, 20, 270)
        for at in itertools.takewhile(lambda at: at < END_S, times)
    )
    load = Load(
        trace=Trace("step", requests, has_times=True),
        num_requests=len(requests),
        process="trace",
    )
    values = {"balance": True, "balance_dwell_s": DWELL_S, "sla": ("standard:2000:50:0.9",)}
    return Scenario(
        profile=SLOW, layout=parse_layout("14p6d"), load=load, warmup=0.0, **(values | changes)
    )


def attained(result: Result, since: float, until: float) -> float:
    """Share of the requests that arrived then."""
    requests = [r for r in result.requests if since <= r.arrived_at < until]
    return sum(r.is_attained for r in requests) / len(requests)


def test_a_step_is_followed_within_ten_seconds_and_nobody_fails():
    balanced, static = (simulate(step_change(1, balance=balance)) for balance in (True, False))
    before = attained(balanced, 5.0, STEP_S)
    assert before > 0.9
    assert attained(balanced, STEP_S + 10.0, END_S) >= before - 0.05
    assert all(r.finished_at is not None and r.num_ends == 1 for r in balanced.requests)
    assert balanced.num_pages_left == 0
    assert attained(static, END_S - 10.0, END_S) < 0.5, "it does not recover"
    assert static.role_changes == ()


def test_changes_keep_the_rules_of_the_balancer():
    changes = simulate(step_change(2)).role_changes
    by_time = [len(list(group)) for _, group in itertools.groupby(changes, key=lambda c: c[0])]
    assert by_time and max(by_time) <= num_at_once(20)
    turned_at: dict[str, float] = {}
    for at, change in changes:
        assert at - turned_at.get(change.node_id, -DWELL_S) >= DWELL_S / 3
        turned_at[change.node_id] = at


@pytest.mark.parametrize("max_candidates", [None, 12])
def test_balanced_runs_are_the_same_step_by_step(max_candidates):
    """Decisions fall in the middle of runs of equal steps."""
    made = [
        simulate(step_change(3, fast_forward=fast, max_candidates=max_candidates))
        for fast in (True, False)
    ]
    times = [[(r.first_token_at, r.finished_at) for r in result.requests] for result in made]
    assert times[0] == times[1]
    assert made[0].role_changes == made[1].role_changes != ()


def test_a_balancer_with_nothing_to_do_changes_no_result():
    plain, balanced = (
        simulate(make_scenario("2p2d", rate=5.0, balance=balance)) for balance in (False, True)
    )
    assert balanced.role_changes == ()
    assert [r.finished_at for r in plain.requests] == [r.finished_at for r in balanced.requests]


def test_early_rejection_refuses_what_would_be_late_and_keeps_the_rest_in_time():
    load = {"rate": 60.0, "profile": SLOW, "sla": ("standard:1000:1000:0.9",), "num_requests": 150}
    plain, early = (
        simulate(make_scenario("1p1d", early_rejection_tolerance=tolerance, warmup=0.0, **load))
        for tolerance in (None, 1.0)
    )
    assert {r.refusal for r in early.requests} == {None, "overloaded"}
    admitted = [r for r in early.requests if r.refusal is None]
    assert sum(r.is_attained for r in admitted) >= 0.9 * len(admitted)
    assert early.attainment > plain.attainment
    assert all(r.num_ends == 1 for r in early.requests) and early.num_pages_left == 0


def test_early_rejection_refuses_nobody_where_there_is_room():
    result = simulate(make_scenario("2p2d", rate=5.0, early_rejection_tolerance=1.0))
    assert all(r.refusal is None for r in result.requests)


def test_settings_that_mean_nothing_are_explained():
    for changes in ({"balance_dwell_s": 0.0}, {"early_rejection_tolerance": 0.0}):
        with pytest.raises(ValueError, match="above 0"):
            make_scenario(**changes)
