"""The verdict on a class, and the stage that is to blame, from how its requests ended."""

import pytest

from coordinator.dashboard.verdicts import limiting_stage
from coordinator.dashboard.windows import Tally


def standard(world):
    return {each.sla_class: each for each in world.snapshot().classes}["standard"]


def test_a_quiet_class_has_no_verdict(world) -> None:
    verdict = standard(world)
    assert (verdict.verdict, verdict.limiting_stage, verdict.budget_left) == (
        "no traffic", None, None,
    )  # fmt: skip


def test_all_is_well(world) -> None:
    for number in range(12):
        world.serve(number)
    verdict = standard(world)
    assert (verdict.verdict, verdict.limiting_stage, verdict.budget_left) == ("ok", None, 1.0)
    assert verdict.explanation == "100 % kept both targets over the last hour"
    assert verdict.stages.queue is not None and 98 < verdict.stages.queue.p50 < 102
    assert verdict.stages.transfer is not None and 39 < verdict.stages.transfer.p99 < 41


def test_a_queue_is_blamed_for_late_first_tokens(world, make_timeline) -> None:
    late = make_timeline(world.unix_s, prefill_start_s=2.5, first_token_s=2.9)
    for number in range(8):
        world.serve(number)
    for number in range(8, 12):
        world.serve(number, sla_attained=False, ttft_ms=2900.0, timeline=late)
    verdict = standard(world)
    assert (verdict.verdict, verdict.limiting_stage) == ("violated", "queue")
    assert "66.6 % kept both targets over the last hour, promised are 95 %" in verdict.explanation
    assert "4 had a late first token of 12 requests" in verdict.explanation
    assert "queue took 86 % of their time to first token" in verdict.explanation


def test_slow_tokens_are_blamed_on_decode(world) -> None:
    for number in range(3):
        world.serve(number, sla_attained=False, tpot_ms=500.0)
    assert standard(world).limiting_stage == "decode"


def test_a_burning_budget_is_a_risk_before_it_is_a_violation(world) -> None:
    for number in range(400):
        world.serve(number)
    world.seconds(310)
    for number in range(400, 420):
        world.serve(number, sla_attained=False, tpot_ms=500.0)
    verdict = standard(world)
    assert verdict.windows["1h"].attainment == pytest.approx(400 / 420)
    assert verdict.verdict == "at risk"
    assert "more than 6 times too fast over 5m;" in verdict.explanation


@pytest.mark.parametrize(
    ("tally", "stage"),
    [
        (Tally(num_ended=5, num_attained=5), None),
        (Tally(num_ended=5, num_failed=5), None),
        (Tally(num_shed=3), "queue"),
        (Tally(num_ended=1, num_late_ttft=1, queue_s=1, prefill_s=2), "prefill"),
        (Tally(num_ended=1, num_late_tpot=1, transfer_s=2, decode_s=1), "transfer"),
        (
            Tally(num_ended=1, num_late_tpot=1, decode_admission_s=2, transfer_s=1, decode_s=1),
            "decode admission",
        ),
        (Tally(num_ended=1, num_late_tpot=1), "decode"),
        (Tally(num_ended=3, num_late_ttft=1, num_late_tpot=2, queue_s=9, decode_s=1), "decode"),
    ],
)
def test_the_limiting_stage(tally: Tally, stage: str | None) -> None:
    assert limiting_stage(tally) == stage


def test_a_fail_over_does_not_look_like_a_queue(world, make_timeline) -> None:
    """The last attempt's prefill began after the first token had come from an earlier one."""
    died = make_timeline(
        world.unix_s, prefill_start_s=4.2, transfer_end_s=4.3, decode_start_s=4.3, finished_s=6.0
    )
    world.serve(1, sla_attained=False, tpot_ms=500.0, timeline=died)
    verdict = standard(world)
    assert verdict.limiting_stage == "decode"
    assert verdict.stages.queue is None and verdict.stages.ttft is not None
