"""Batch policies and the plan check: limits hold, fifo fills rows, static keeps its batch."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.plan_check import check_plan
from scheduling.batch.catalogue import make_batch_policy
from scheduling.batch.fifo import FifoPolicy
from scheduling.batch.options import split_options
from scheduling.batch.static import StaticOptions, StaticPolicy
from scheduling.costs import UNKNOWN_COSTS
from scheduling.views import NodeView, SequenceView, Services, StepPlan

SERVICES = Services(UNKNOWN_COSTS)


def sequence(n: int, *, num_computed: int = 10, num_tokens: int = 11) -> SequenceView:
    return SequenceView(
        key=(n.to_bytes(16, "big"), 1),
        age=n,
        arrived_at=0.0,
        priority=0,
        tenant="default",
        num_prompt_tokens=10,
        num_tokens=num_tokens,
        num_computed=num_computed,
        max_total_tokens=100,
    )


def view(
    *,
    now: float = 0.0,
    prefill: list[SequenceView] | None = None,
    waiting: list[SequenceView] | None = None,
    running: list[SequenceView] | None = None,
) -> NodeView:
    return NodeView(
        now=now,
        max_num_seqs=4,
        max_num_batched_tokens=32,
        prefill_weight=1.0,
        decode_weight=1.0,
        prefill=tuple(prefill or ()),
        waiting=tuple(waiting or ()),
        running=tuple(running or ()),
    )


def test_fifo_admits_the_oldest_and_gives_the_rest_of_the_budget_to_prefill() -> None:
    prompts = [sequence(20, num_computed=0, num_tokens=25), sequence(21, num_computed=5)]
    waiting = [sequence(n) for n in (9, 3, 7)]
    running = [sequence(1), sequence(2)]
    plan = FifoPolicy().plan(view(prefill=prompts, waiting=waiting, running=running), SERVICES)
    assert [k[0][-1] for k in plan.admit] == [3, 7]
    assert [k[0][-1] for k in plan.decode] == [1, 2, 3, 7]
    assert [n for _, n in plan.prefill] == [25, 3]


def test_static_waits_for_a_full_batch_or_its_patience() -> None:
    policy = StaticPolicy(StaticOptions(max_wait_s=1.0), keep_finished_rows=True)
    plan = policy.plan(view(now=5.0, waiting=[sequence(1)]), SERVICES)
    assert (plan.admit, plan.decode, plan.wake_at) == ((), (), 6.0)
    assert policy.plan(view(now=6.0, waiting=[sequence(1)]), SERVICES).admit == (sequence(1).key,)
    full = StaticPolicy(keep_finished_rows=True).plan(
        view(waiting=[sequence(n) for n in range(6)]), SERVICES
    )
    assert len(full.admit) == 4


@pytest.mark.parametrize("keep", [True, False])
def test_static_keeps_or_drops_the_rows_of_ended_requests(keep: bool) -> None:
    policy = StaticPolicy(keep_finished_rows=keep)
    policy.plan(view(waiting=[sequence(n, num_tokens=11) for n in range(4)]), SERVICES)
    left = [sequence(0, num_tokens=12), sequence(1, num_tokens=12)]
    plan = policy.plan(view(running=left, waiting=[sequence(8)]), SERVICES)
    assert plan.admit == ()
    assert len(plan.decode) == 2
    assert plan.padding_contexts == ((12, 12) if keep else ())
    assert policy.plan(view(waiting=[sequence(8)]), SERVICES).padding_contexts == ()


def test_dead_rows_do_not_outgrow_the_longest_member() -> None:
    policy = StaticPolicy(keep_finished_rows=True)
    policy.plan(view(waiting=[sequence(n, num_tokens=11) for n in range(4)]), SERVICES)
    plan = StepPlan()
    for num_tokens in range(12, 400):
        plan = policy.plan(view(running=[sequence(0, num_tokens=num_tokens)]), SERVICES)
    assert plan.padding_contexts == (100, 100, 100)


keys = st.integers(0, 9).map(lambda n: (n.to_bytes(16, "big"), 1))


@given(
    decode=st.lists(keys),
    admit=st.lists(keys),
    prefill=st.lists(st.tuples(keys, st.integers(-5, 100))),
    padding=st.lists(st.integers(1, 50)),
)
def test_no_plan_exceeds_the_limits(
    decode: list[tuple[bytes, int]],
    admit: list[tuple[bytes, int]],
    prefill: list[tuple[tuple[bytes, int], int]],
    padding: list[int],
) -> None:
    now = view(
        prefill=[sequence(n, num_computed=3, num_tokens=20) for n in (6, 7)],
        waiting=[sequence(n) for n in (3, 4, 5)],
        running=[sequence(n) for n in (0, 1, 2)],
    )
    plan = StepPlan(
        decode=tuple(decode),
        admit=tuple(admit),
        prefill=tuple(prefill),
        padding_contexts=tuple(padding),
    )
    checked = check_plan(plan, now).plan
    assert len(checked.decode) + len(checked.padding_contexts) <= now.max_num_seqs
    num_tokens = sum(n for _, n in checked.prefill)
    assert len(checked.decode) + len(checked.padding_contexts) + num_tokens <= 32
    assert len(set(checked.decode)) == len(checked.decode)
    assert len({k for k, _ in checked.prefill}) == len(checked.prefill)
    assert all(0 < n <= 17 for _, n in checked.prefill)
    known = {s.key for s in now.running} | set(checked.admit)
    assert set(checked.decode) <= known
    assert len(checked.admit) <= 1


def test_a_legal_plan_passes_untouched() -> None:
    now = view(waiting=[sequence(1)], running=[sequence(2)], prefill=[sequence(3, num_computed=0)])
    plan = FifoPolicy().plan(now, SERVICES)
    assert check_plan(plan, now).plan == plan
    assert check_plan(plan, now).num_dropped == 0


def test_unknown_policy_lists_the_names() -> None:
    with pytest.raises(ValueError, match=r"fifo.*static"):
        make_batch_policy("fastest")


def test_options_are_key_value_pairs() -> None:
    assert split_options(["guard-ms=3000", "fair = true"]) == {"guard_ms": "3000", "fair": "true"}
    for wrong, advice in ((["fair"], "not KEY=VALUE"), (["a=1", "a=2"], "twice")):
        with pytest.raises(ValueError, match=advice):
            split_options(wrong)
