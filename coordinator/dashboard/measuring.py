"""What one ended request tells of its class: how it counts, and where its time went. Pure."""

from coordinator.dashboard.durations import STAGES
from coordinator.dashboard.windows import Tally
from tandem.messages.common import SlaTargets
from tandem.messages.placement import RequestEnded
from tandem.stages import stages_of

StageSeconds = dict[str, float]
# What a late first token waited for, and what came between it and a late last one.
BEFORE_FIRST = ("queue", "prefill")


def stage_seconds(report: RequestEnded) -> StageSeconds:
    """Seconds by stage, of those that its last attempt went through.

    One that began after the first token says nothing of how long that took: a node's death must not
    look like a queue. What it cost, the wait for more tokens, is decode's.
    """
    timeline = report.timeline
    if timeline is None:
        return {}
    started_s, first_s, end_s = (
        timeline.prefill_start_s, timeline.first_token_s, timeline.finished_s,
    )  # fmt: skip
    if started_s is not None and first_s is not None and started_s > first_s:
        return {} if end_s is None else {"decode": max(0.0, end_s - first_s)}
    return {stage.name: stage.seconds for stage in stages_of(timeline)}


def durations_ms(report: RequestEnded, seconds: StageSeconds) -> tuple[float | None, ...]:
    """In the order of `STAGES`."""
    known = {name: value * 1e3 for name, value in seconds.items()}
    own = {"ttft": report.ttft_ms, "tpot": report.tpot_ms, "max_itl": report.max_itl_ms}
    return tuple((known | own).get(name) for name in STAGES)


def is_shed(report: RequestEnded) -> bool:
    """Whether it was refused early, so that nothing was computed for it."""
    return report.reason == "failed" and report.code == "overloaded"


def tally_of(report: RequestEnded, targets: SlaTargets, seconds: StageSeconds) -> Tally:
    """How it counts; where it missed a target, with the stages that could be to blame for that."""
    if is_shed(report):
        return Tally(num_shed=1)
    is_failed = report.reason == "failed"
    tally = Tally(num_ended=1, num_attained=report.sla_attained, num_failed=is_failed)
    if report.sla_attained or is_failed:
        return tally
    if report.ttft_ms is None or report.ttft_ms > targets.ttft_ms:
        tally.num_late_ttft = 1
        tally.queue_s = seconds.get("queue", 0.0)
        tally.prefill_s = seconds.get("prefill", 0.0)
    if report.tpot_ms is not None and report.tpot_ms > targets.tpot_ms:
        # The mean time per token counts from the first one: the hand-off is part of it.
        allowed_s = targets.tpot_ms / 1e3 * max(0, report.num_output_tokens - 1)
        tally.num_late_tpot = 1
        tally.transfer_s = seconds.get("transfer", 0.0)
        tally.decode_admission_s = seconds.get("decode_admission", 0.0)
        tally.decode_s = max(0.0, seconds.get("decode", 0.0) - allowed_s)
    return tally
