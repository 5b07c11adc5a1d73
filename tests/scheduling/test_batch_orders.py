"""What single batch policies do differently, one plan at a time."""

import pytest

from scheduling.batch.catalogue import make_batch_policy
from scheduling.costs import step_s, step_shape
from scheduling.views import NodeView, Services, StepPlan
from tandem.messages.common import NodeCosts
from tests.scheduling.views import ages, node, predicted, prompt, row

COSTS = NodeCosts(
    step_s=5e-3,
    prefill_token_s=1e-4,
    prefill_context_s=0.0,
    decode_row_s=1e-4,
    decode_context_s=0.0,
    num_steps=50,
)


def plan(name: str, view: NodeView, **options: str) -> StepPlan:
    return make_batch_policy(name, options).plan(view, Services(COSTS))


# --- pages ----------------------------------------------------------------------------------------


def test_the_newest_gives_way_where_pages_run_out() -> None:
    """Rows 1 and 3 need a page, one is free; 4 is the newest and holds two."""
    running = (row(1, 17), row(3, 33), row(4, 20))
    got = ages(plan("fifo", node(running=running, waiting=(row(9, 5),), num_free_pages=1)))
    assert got == {"decode": [1, 3], "admit": [], "preempt": [4], "prefill": []}


def test_the_newest_waits_for_its_page_while_others_run() -> None:
    """Held, not preempted: no work is lost, and whoever ends gives pages back."""
    running = (row(1, 18), row(4, 17))
    got = ages(plan("fifo", node(running=running, waiting=(row(9, 5),), num_free_pages=0)))
    assert got == {"decode": [1], "admit": [], "preempt": [], "prefill": []}


def test_alone_without_a_page_it_gives_its_own_back() -> None:
    stuck = plan("fifo", node(now=3.0, running=(row(4, 17),), num_free_pages=0))
    assert ages(stuck)["preempt"] == [4]
    assert stuck.wake_at == 3.0


def test_admission_leaves_the_watermark_unless_all_growth_is_promised() -> None:
    running = (row(1, 18),)
    open_end, promised = row(2, 18), row(3, 18, num_promised=4)
    few = node(running=running, waiting=(open_end,), num_free_pages=2, num_watermark_pages=3)
    assert ages(plan("fifo", few))["admit"] == []
    few = node(running=running, waiting=(promised,), num_free_pages=2, num_watermark_pages=3)
    assert ages(plan("fifo", few))["admit"] == [3]


def test_swapped_ones_come_back_for_the_pages_that_they_had() -> None:
    away = row(2, 40, num_pages=0)
    assert ages(plan("fifo", node(swapped=(away,), num_free_pages=3)))["admit"] == [2]
    assert ages(plan("fifo", node(swapped=(away,), num_free_pages=2)))["admit"] == []


def test_orca_admits_only_what_fits_at_full_length() -> None:
    """Each may grow to 74 tokens, 5 pages, and has one: twice 4 fit in 9, not three times."""
    waiting = tuple(row(n, 12) for n in (1, 2, 3))
    view = node(waiting=waiting, num_free_pages=9)
    assert ages(plan("orca", view))["admit"] == [1, 2]
    assert ages(plan("fifo", view))["admit"] == [1, 2, 3]


# --- prompts --------------------------------------------------------------------------------------


def test_orca_computes_prompts_whole_and_others_in_chunks() -> None:
    view = node(prefill=(prompt(1, 40), prompt(2, 40)))
    assert plan("orca", view).prefill == ((prompt(1, 40).key, 40),)
    assert [n for _, n in plan("sarathi", view).prefill] == [40, 24]
    long = node(prefill=(prompt(1, 90), prompt(2, 4)))
    assert [n for _, n in plan("orca", long).prefill] == [64]


def test_sarathi_spends_what_rows_leave_of_its_budget_and_goes_on_first() -> None:
    view = node(prefill=(prompt(1, 50), prompt(2, 50, 30)), running=(row(8, 18), row(9, 18)))
    got = plan("sarathi", view, token_budget="30")
    assert [(k[0][-1], n) for k, n in got.prefill] == [(2, 20), (1, 8)]
    assert len(got.decode) == 2


def test_spf_takes_the_shortest_prompt_and_hrrn_whoever_waited_out_of_proportion() -> None:
    short, long = prompt(5, 20, arrived_at=9.99), prompt(1, 60, arrived_at=0.0)
    view = node(now=10.0, prefill=(long, short))
    assert ages(plan("spf", view))["prefill"][0] == 5
    assert ages(plan("hrrn", view))["prefill"][0] == 1
    both = (prompt(1, 60, arrived_at=9.9), prompt(5, 20, arrived_at=9.9))
    assert ages(plan("hrrn", node(now=10.0, prefill=both)))["prefill"][0] == 5


# --- predictions ----------------------------------------------------------------------------------


def test_sjf_admits_the_shortest_answer_and_stops_nobody() -> None:
    running = tuple(row(n, 18, prediction=predicted(60)) for n in range(3))
    waiting = (row(7, 18, prediction=predicted(50)), row(8, 18, prediction=predicted(4)))
    got = ages(plan("sjf", node(running=running, waiting=waiting)))
    assert (got["admit"], got["preempt"]) == ([8], [])
    assert ages(plan("sjf", node(running=(*running, row(3, 18)), waiting=waiting)))["admit"] == []


@pytest.mark.parametrize("name", ["srpt", "ltr"])
def test_preemptive_orders_stop_the_last_for_the_first(name: str) -> None:
    running = tuple(row(n, 18, prediction=predicted(20 + 10 * n)) for n in range(4))
    got = ages(plan(name, node(running=running, waiting=(row(8, 18, prediction=predicted(9)),))))
    assert got == {"decode": [0, 1, 2, 8], "admit": [8], "preempt": [3], "prefill": []}
    back = node(running=running, swapped=(row(8, 18, prediction=predicted(9)),))
    assert ages(plan(name, back))["preempt"] == []


def test_srpt_spares_those_that_are_nearly_done_and_wants_a_gain() -> None:
    nearly = tuple(row(n, 50, prediction=predicted(44)) for n in range(4))
    new = row(8, 18, prediction=predicted(9))
    assert ages(plan("srpt", node(running=nearly, waiting=(new,))))["preempt"] == []
    alike = tuple(row(n, 12, prediction=predicted(16)) for n in range(4))
    new = row(8, 11, prediction=predicted(9))
    assert ages(plan("srpt", node(running=alike, waiting=(new,))))["preempt"] == []
    assert ages(plan("srpt", node(running=alike, waiting=(new,)), gain="1"))["preempt"] == [3]


def test_priority_stops_only_lower_classes() -> None:
    running = (row(0, 18, priority=2), *(row(n, 18) for n in (1, 2, 3)))
    urgent, usual = row(8, 18, priority=1), row(7, 18)
    got = ages(plan("priority", node(running=running, waiting=(usual, urgent))))
    assert (got["admit"], got["preempt"]) == ([8], [3])


# --- targets --------------------------------------------------------------------------------------


def test_slai_holds_relaxed_rows_while_prompts_fill_the_step() -> None:
    """A token is due after 0.5 s, five steps are 26 ms: at 0.1 s only 1 is critical."""
    strict, relaxed = row(1, 18, tpot_s=0.1), row(2, 18, tpot_s=0.5)
    view = node(now=0.1, running=(strict, relaxed), prefill=(prompt(5, 200),))
    assert ages(plan("slai", view))["decode"] == [1]
    without = node(now=0.1, running=(strict, relaxed))
    assert ages(plan("slai", without))["decode"] == [1, 2]
    later = node(now=0.49, running=(strict, relaxed), prefill=(prompt(5, 200),))
    assert ages(plan("slai", later))["decode"] == [1, 2]


def test_niyama_takes_the_largest_chunk_by_which_no_token_is_late() -> None:
    rows = tuple(row(n, 18, tpot_s=0.03) for n in range(2))
    view = node(running=rows, prefill=(prompt(5, 900),), max_num_batched_tokens=1024)
    got = plan("niyama", view)
    [(_, num_tokens)] = got.prefill
    assert num_tokens == 128
    slack_s = 0.03
    assert 1.2 * step_s(COSTS, step_shape([(128, 0)], [18, 18])) <= slack_s
    assert 1.2 * step_s(COSTS, step_shape([(256, 0)], [18, 18])) > slack_s
    alone = node(prefill=(prompt(5, 900),), max_num_batched_tokens=1024)
    assert plan("niyama", alone).prefill[0][1] == 900


def test_niyama_does_not_hold_prompts_for_a_target_that_nothing_meets() -> None:
    rows = tuple(row(n, 18, tpot_s=1e-3) for n in range(2))
    view = node(running=rows, prefill=(prompt(5, 900),), max_num_batched_tokens=1024)
    assert plan("niyama", view).prefill[0][1] == 900


def test_niyama_relegates_what_cannot_be_in_time_and_goes_by_deadline() -> None:
    """At 1 s: 3 is lost (due at 0.9 s), 2 is due before 1."""
    lost = prompt(3, 50, ttft_s=0.9)
    soon, later = prompt(2, 50, ttft_s=1.5), prompt(1, 50, ttft_s=4.0)
    view = node(now=1.0, prefill=(lost, later, soon), max_num_batched_tokens=1024)
    assert ages(plan("niyama", view))["prefill"] == [2, 1, 3]
    assert ages(plan("niyama", view, relegate="false"))["prefill"] == [3, 2, 1]


def test_without_targets_niyama_is_shortest_first() -> None:
    prompts = (prompt(1, 60), prompt(2, 20), prompt(3, 40))
    view = node(prefill=prompts, max_num_batched_tokens=200)
    assert ages(plan("niyama", view))["prefill"] == [2, 3, 1]


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "advice"),
    [
        ("fifo", {"token_budget": "3"}, "known are fair, guard_factor"),
        ("sarathi", {"token_budgte": "3"}, "did you mean token_budget"),
        ("sarathi", {"token_budget": "many"}, "must be a whole number"),
        ("sarathi", {"token_budget": "0"}, "try 512"),
        ("slai", {"order": "random"}, "one of spf, fifo, strict"),
        ("niyama", {"relegate": "perhaps"}, "true or false"),
        ("niyama", {"margin": "inf"}, "must be a number"),
        ("fifo", {"guard_ms": "-1"}, "try 3000"),
        ("fifo", {"guard_share": "2"}, r"within \(0, 1\]"),
    ],
)
def test_wrong_options_come_with_advice(name: str, options: dict[str, str], advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        make_batch_policy(name, options)


def test_none_switches_a_guard_off() -> None:
    assert type(make_batch_policy("fifo", {"guard_ms": "none"})) is type(make_batch_policy("fifo"))
