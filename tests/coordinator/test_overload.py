"""Overload: goodput stays near its peak, and who cannot make it hears so at once."""

import statistics

import pytest

from tests.coordinator.overload_world import COSTS, PROMPT_S, Served, World

SECONDS = 12.0
CAPACITY = 2 / PROMPT_S  # prompts per second of two prefill nodes
TTFT_S, TPOT_S = 2.0, 0.1  # of class standard


@pytest.fixture
def run(make_cluster):
    """Serve at a multiple of the capacity; returns all requests."""

    def run_at(load: float, rate_of: float = CAPACITY, **settings) -> list[Served]:
        cluster = make_cluster(**settings)
        cluster.greet()
        return World(cluster).run(load * rate_of, SECONDS)

    return run_at


def goodput(requests: list[Served]) -> float:
    return sum(each.is_good(TTFT_S, TPOT_S) for each in requests) / SECONDS


def test_goodput_stays_above_four_fifths_of_its_peak_up_to_ten_times_the_capacity(run) -> None:
    by_load = {load: goodput(run(load)) for load in (0.5, 1.0, 2.0, 5.0, 10.0)}
    print("goodput by load:", {load: round(rate, 1) for load, rate in by_load.items()})
    peak = max(by_load.values())
    assert peak > 0.9 * CAPACITY
    for load in (1.0, 2.0, 5.0, 10.0):
        assert by_load[load] >= 0.8 * peak, by_load


def test_without_early_rejection_goodput_collapses(run) -> None:
    """What the test above would find if nothing were refused: the queue outgrows the target."""
    assert goodput(run(5.0, early_rejection="off")) < 0.4 * CAPACITY


def test_below_capacity_nobody_is_refused(run) -> None:
    requests = run(0.9)
    assert all(each.is_good(TTFT_S, TPOT_S) for each in requests)


@pytest.mark.parametrize("load", [2.0, 10.0])
def test_regression_18_of_a_burst_the_admitted_keep_the_sla_and_the_rest_hear_at_once(
    run, load
) -> None:
    requests = run(load)
    refused = [each for each in requests if each.refused_after_s is not None]
    served = [each for each in requests if each.refused_after_s is None]
    assert len(refused) >= 0.8 * (1 - 1 / load) * len(requests) - CAPACITY * TTFT_S
    assert max(each.refused_after_s for each in refused) == 0.0
    late = [each for each in served if not each.is_good(TTFT_S, TPOT_S)]
    assert len(late) <= 0.01 * len(served)
    print("median TTFT of the admitted:", statistics.median(each.ttft_s for each in served))


def test_a_tenant_that_floods_takes_nothing_from_one_within_its_share(make_cluster) -> None:
    """Of five times the capacity one request in twenty is the other tenant's: a quarter of it."""
    cluster = make_cluster()
    cluster.greet()
    world = World(cluster, tenant_of=lambda number: "modest" if number % 20 == 0 else "greedy")
    requests = world.run(5 * CAPACITY, SECONDS)
    modest = [each for each in requests if each.number % 20 == 0]
    assert sum(each.is_good(TTFT_S, TPOT_S) for each in modest) >= 0.9 * len(modest)
    assert goodput(requests) >= 0.8 * CAPACITY


@pytest.mark.parametrize("stuck", [("d0",), ("p0",), ("p0", "d0")])
def test_regression_15_nodes_beside_a_full_one_go_on_as_if_it_were_not_there(
    make_cluster, stuck
) -> None:
    cluster = make_cluster()
    cluster.greet()
    world = World(cluster, stuck=stuck)
    world._beat()
    requests = world.run(0.45 * CAPACITY, SECONDS)
    assert len(requests) > 60
    assert all(each.is_good(TTFT_S, TPOT_S) for each in requests)
    assert cluster.status().num_queued == 0


def test_the_refusal_says_when_and_why(make_cluster) -> None:
    cluster = make_cluster()
    cluster.greet()
    World(cluster)._beat()
    answers = [cluster.place(i, num_prompt_tokens=1000)[0] for i in range(60)]
    refused = [each for each in answers if hasattr(each, "code")]
    assert {each.code for each in refused} == {"overloaded"}
    assert all(each.predicted_ttft_s > TTFT_S for each in refused)
    assert all(0.1 <= each.retry_after_s <= 30 for each in refused)
    for part in ("promised are 2 s", "prompt tokens wait", "launch_prefill"):
        assert part in refused[0].message
    assert cluster.status().num_shed == len(refused)
    # Fail-overs are begun work, and batch work has time.
    assert hasattr(cluster.place(99, attempt=2, num_prompt_tokens=1000)[0], "decode")
    assert hasattr(cluster.place(98, sla_class="batch", num_prompt_tokens=1000)[0], "decode")


@pytest.mark.parametrize(
    "changes", [{"num_steps": 49}, {"error": 0.51}], ids=["few steps", "a poor fit"]
)
def test_nobody_is_refused_on_costs_that_cannot_be_relied_on(make_cluster, changes) -> None:
    cluster = make_cluster()
    cluster.greet()
    costs = {name: getattr(COSTS, name) for name in COSTS.__struct_fields__}
    World(cluster, costs=type(COSTS)(**{**costs, **changes}))._beat()
    answers = [cluster.place(i, num_prompt_tokens=1000)[0] for i in range(60)]
    assert not any(hasattr(each, "code") for each in answers)


def test_a_target_that_idle_nodes_break_too_is_served_as_well_as_it_can_be(make_cluster) -> None:
    cluster = make_cluster()
    cluster.greet()
    World(cluster)._beat()
    slow = {name: getattr(COSTS, name) for name in COSTS.__struct_fields__}
    slow["prefill_token_s"] = 1e-2  # 10 s for a prompt of 1000 tokens, promised are 2 s
    for name in ("p0", "p1"):
        cluster.beat(name, num_pages=10_000, costs=type(COSTS)(**slow))
    answers = [cluster.place(i, num_prompt_tokens=1000)[0] for i in range(20)]
    assert not any(hasattr(each, "code") for each in answers)


def test_tokens_that_would_come_too_slowly_are_refused_for_the_decode_load(make_cluster) -> None:
    cluster = make_cluster(max_held_requests=0)
    cluster.greet()
    World(cluster)._beat()
    cluster.beat("d0", num_pages=10_000, num_decode_running=60, costs=COSTS)
    cluster.beat("d1", num_pages=10_000, num_decode_running=60, costs=COSTS)
    (answer,) = cluster.place(1, tpot_ms=60.0)
    assert answer.code == "overloaded"
    assert "promised are 60 ms" in answer.message
    assert hasattr(cluster.place(2, tpot_ms=90.0)[0], "decode")


def test_the_tolerance_must_make_sense(make_cluster) -> None:
    with pytest.raises(ValueError, match="early-rejection-tolerance"):
        make_cluster(early_rejection_tolerance=0.0)
    with pytest.raises(ValueError, match="max-held-requests"):
        make_cluster(max_held_requests=-1)
