"""Prefill policies: what each does to the first token that its paper is about."""

import random

import pytest

from scheduling.prefill.catalogue import PREFILL_POLICIES, make_prefill_policy
from scheduling.prefill.guard import WaitGuard
from scheduling.prefill.shared_prefix import SharedPrefixFirst
from scheduling.views import SequenceView
from tests.scheduling.prompt_queue import SERVICES, TOKEN_S, numbers, order, prompt, serve

NAMES = sorted(PREFILL_POLICIES)


def traffic(num: int, *, load: float, seed: int = 1) -> list[SequenceView]:
    """Prompts of 50 to 2000 tokens at this load; a third has to be quick, the rest has time."""
    rng = random.Random(seed)
    prompts, at = [], 0.0
    for n in range(num):
        num_tokens = int(50 * 40 ** rng.random())
        ttft_s = (0.5 if n % 3 == 0 else 6.0) + num_tokens * TOKEN_S
        prompts.append(prompt(n, num_tokens, at=at, ttft_s=ttft_s, answer=rng.uniform(1, 500)))
        at += rng.expovariate(load / (530 * TOKEN_S))
    return prompts


def num_on_time(prompts: list[SequenceView], name: str) -> int:
    done = serve(name, prompts)
    return sum(done[s.age] <= s.first_token_due_at for s in prompts)


@pytest.mark.parametrize("name", NAMES)
def test_every_policy_orders_everybody_once_and_drains(name: str) -> None:
    prompts = traffic(40, load=1.5)
    assert sorted(order(name, prompts, now=3.0)) == list(range(40))
    assert sorted(serve(name, prompts)) == list(range(40))
    wrapped = {"guard_ms": "500", "shared_prefix_ms": "500"}
    assert sorted(serve(name, prompts, **wrapped)) == list(range(40))


@pytest.mark.parametrize("name", NAMES)
def test_priority_goes_first_and_ties_by_age(name: str) -> None:
    same = [prompt(n, 100, priority=n % 2, answer=10) for n in (3, 2, 1, 0)]
    assert order(name, same) == [1, 3, 0, 2]


@pytest.mark.parametrize("name", ["fifo", "spf", "sjf", "ltr", "hrrn"])
def test_what_has_begun_runs_to_its_end(name: str) -> None:
    begun = prompt(9, 2000, at=1.0, answer=500, is_begun=True)
    assert order(name, [prompt(1, 10, answer=1), begun], now=1.0) == [9, 1]


@pytest.mark.parametrize("name", ["edf", "niyama"])
def test_a_deadline_interrupts_what_has_begun(name: str) -> None:
    begun = prompt(1, 2000, ttft_s=60.0, is_begun=True)
    assert order(name, [begun, prompt(2, 100, ttft_s=0.5)]) == [2, 1]


def test_spf_lowers_mean_ttft_and_a_long_prompt_pays() -> None:
    prompts = traffic(200, load=0.95)

    def ttfts(name: str, **options: str) -> list[float]:
        done = serve(name, prompts, **options)
        return sorted(done[s.age] - s.arrived_at for s in prompts)

    fifo, spf, guarded = ttfts("fifo"), ttfts("spf"), ttfts("spf", guard_ms="4000")
    assert sum(spf) < 0.7 * sum(fifo)
    assert spf[-1] > fifo[-1]
    assert guarded[-1] < spf[-1]
    assert sum(guarded) < sum(fifo)


def test_sjf_and_ltr_sort_by_prediction() -> None:
    known = [prompt(0, 10, answer=300), prompt(1, 10, answer=20), prompt(2, 900, answer=3)]
    unknown = prompt(3, 10)  # may be 100 tokens long
    assert order("sjf", [*known, unknown]) == [2, 1, 3, 0]
    assert order("ltr", [*known, unknown]) == [2, 1, 0, 3]


def test_hrrn_prefers_short_until_the_long_one_waited() -> None:
    long, short = prompt(0, 2000, at=0.0), prompt(1, 100, at=5.0)
    assert order("hrrn", [long, prompt(1, 100, at=0.0)], now=0.1) == [1, 0]
    # (5 + 2) / 2 beats (0.2 + 0.1) / 0.1
    assert order("hrrn", [long, short], now=5.2) == [0, 1]


def test_edf_meets_deadlines_that_fifo_and_spf_miss() -> None:
    prompts = traffic(200, load=0.7, seed=2)
    assert num_on_time(prompts, "edf") > num_on_time(prompts, "spf")
    assert num_on_time(prompts, "edf") > num_on_time(prompts, "fifo")


def test_under_overload_edf_is_late_with_all_and_niyama_gives_up_some() -> None:
    """Niyama's point: relegating who is late anyway keeps the others in time."""
    prompts = traffic(200, load=1.6)
    assert num_on_time(prompts, "niyama") > 4 * num_on_time(prompts, "edf")


def test_niyama_relegates_once_and_for_good() -> None:
    policy = make_prefill_policy("niyama")
    late, fine = prompt(1, 1000, ttft_s=0.5), prompt(2, 1000, ttft_s=30.0)
    assert numbers(policy.order([late, fine], 0.0, SERVICES)) == [2, 1]
    almost_done = prompt(1, 10, ttft_s=0.5, is_begun=True)
    assert numbers(policy.order([almost_done, fine], 0.0, SERVICES)) == [2, 1]


def test_guard_serves_one_in_five_by_age() -> None:
    """A long prompt under a stream of short ones that never ends runs all the same."""
    stream = [prompt(n, 100, at=0.099 * n) for n in range(1, 400)]
    long = prompt(0, 300, at=0.15)
    assert serve("spf", [long, *stream])[0] > 39.0
    assert serve("spf", [long, *stream], guard_ms="2000")[0] < 3.0


def test_guard_does_not_turn_an_overload_into_fifo() -> None:
    """All are overdue: the policy still chooses four of five."""
    guard = WaitGuard(make_prefill_policy("spf"), max_wait_s=1.0, every=5)
    queue = [prompt(n, 1000 - 10 * n) for n in range(40)]
    served = []
    while queue:
        served.append(numbers(guard.order(queue, 100.0, SERVICES))[0])
        queue = [s for s in queue if s.age != served[-1]]
    assert served[:10] == [0, 39, 38, 37, 36, 1, 35, 34, 33, 32]


def test_one_prompt_of_a_prefix_computes_it_for_the_others() -> None:
    policy = SharedPrefixFirst(make_prefill_policy("fifo"), max_wait_s=1.0)
    same = [prompt(n, 500, prefix_id=b"a") for n in (1, 2, 3)]
    other, short = prompt(4, 500, prefix_id=b"b"), prompt(5, 20)

    def at(now: float, *sequences: SequenceView) -> list[int]:
        return numbers(policy.order(sequences, now, SERVICES))

    assert at(0.0, *same, other, short) == [1, 4, 5]
    computing = prompt(1, 500, prefix_id=b"a", num_pages=32)
    assert at(0.1, computing, *same[1:]) == [1]
    assert at(0.2, *same[1:]) == [2]  # the first is done: the next one reads the cache
    found = prompt(2, 500, prefix_id=b"a", num_pages=32, num_cached=480)
    assert at(0.3, found, same[2]) == [2, 3]  # cached: nobody has to wait for it
    assert at(0.4, computing, same[2]) == [1]
    assert at(1.5, computing, same[2]) == [1, 3]  # nor for ever
