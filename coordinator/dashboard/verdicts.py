"""How a class stands and what holds it up, in words. Pure."""

from coordinator.dashboard.durations import RecentDurations
from coordinator.dashboard.windows import ClassWindows, Tally
from scheduling.sla import SlaClass
from tandem.messages.operations import WINDOWS_S, ClassVerdict, StageTimes

WORDS = {
    "queue": "queue",
    "prefill": "prefill",
    "transfer": "transfer",
    "decode_admission": "decode admission",
    "decode": "decode",
}
ADVICE = {
    "queue": "prompts wait for a prefill node: more prefill capacity, or less traffic, helps",
    "prefill": "prompts are long for the nodes that compute them: faster or less busy prefill "
    "nodes, or a longer TTFT target, help",
    "transfer": "KV takes long from node to node: look at transfer rates and failures of the nodes",
    "decode admission": "sequences wait for pages or a slot on decode nodes: more decode capacity "
    "helps",
    "decode": "steps of decode nodes take longer than the TPOT target: fewer sequences per node, "
    "or more decode nodes, help",
}


def verdict_of(
    sla_class: SlaClass, windows: ClassWindows, durations: RecentDurations, unix_s: float
) -> ClassVerdict:
    """One class now."""
    hour = windows.total("1h", unix_s)
    rule = windows.burning(unix_s)
    recent, span = windows.total("5m", unix_s), "five minutes"
    if _num_missed(recent) == 0:
        recent, span = hour, "hour"
    attainment = hour.attainment
    stage = limiting_stage(recent)
    if attainment is None:
        verdict, reason = "no traffic", "no request of this class ended within the last hour"
    elif attainment < sla_class.attainment:
        verdict = "violated"
        reason = f"{_share(attainment)} kept both targets over the last hour, promised are "
        reason += _share(sla_class.attainment)
    elif rule is not None:
        verdict = "at risk"
        spans = " and ".join(dict.fromkeys((rule.long, rule.short)))
        reason = f"the error budget is spent more than {rule.rate:g} times too fast over {spans}"
    else:
        verdict = "ok"
        reason = f"{_share(attainment)} kept both targets over the last hour"
    return ClassVerdict(
        sla_class=sla_class.name,
        ttft_ms=sla_class.ttft_ms,
        tpot_ms=sla_class.tpot_ms,
        attainment=sla_class.attainment,
        verdict=verdict,
        explanation="; ".join([reason, *_misses(recent, span, stage)]),
        limiting_stage=stage,
        budget_left=windows.budget_left(unix_s),
        windows={name: windows.verdict(name, unix_s) for name in WINDOWS_S},
        stages=StageTimes(**durations.quantiles(unix_s)),
    )


def limiting_stage(tally: Tally) -> str | None:
    """Where requests that missed a target spent most time; None where nobody missed one by time.

    The more frequent miss decides: late first tokens are due to queue or prefill, slow tokens to
    the hand-off or to decode. Shed ones would have waited for prefill, as was predicted.
    """
    num_late_first = tally.num_late_ttft + tally.num_shed
    if num_late_first == 0 and tally.num_late_tpot == 0:
        return None
    if num_late_first >= tally.num_late_tpot:
        return "prefill" if tally.prefill_s > tally.queue_s else "queue"
    seconds = {
        "transfer": tally.transfer_s,
        "decode_admission": tally.decode_admission_s,
        "decode": tally.decode_s,
    }
    most = max(seconds.values())
    return WORDS["decode" if seconds["decode"] == most else max(seconds, key=seconds.__getitem__)]


def _misses(tally: Tally, span: str, stage: str | None) -> list[str]:
    """What went wrong and where, as sentences without their stops."""
    if _num_missed(tally) == 0:
        return []
    parts = [
        f"{num:.0f} {what}"
        for num, what in (
            (tally.num_late_ttft, "had a late first token"),
            (tally.num_late_tpot, "had slow tokens"),
            (tally.num_failed, "failed"),
            (tally.num_shed, "were refused early"),
        )
        if num
    ]
    said = [f"in the last {span} {', '.join(parts)} of {tally.num_requests:.0f} requests"]
    if stage is None:
        return said
    where = _where(tally, stage)
    return [*said, f"{where}{ADVICE[stage]}"]


def _where(tally: Tally, stage: str) -> str:
    """The share of the time that the stage took of what was late."""
    first_s, hand_off_s = tally.queue_s + tally.prefill_s, tally.transfer_s
    later_s = hand_off_s + tally.decode_admission_s + tally.decode_s
    seconds, all_s = {
        "queue": (tally.queue_s, first_s),
        "prefill": (tally.prefill_s, first_s),
        "transfer": (tally.transfer_s, later_s),
        "decode admission": (tally.decode_admission_s, later_s),
        "decode": (tally.decode_s, later_s),
    }[stage]
    if all_s == 0:
        return ""
    of_what = "their time to first token" if stage in ("queue", "prefill") else "what was too long"
    return f"{stage} took {100 * seconds / all_s:.0f} % of {of_what}: "


def _num_missed(tally: Tally) -> float:
    return tally.num_requests - tally.num_attained


def _share(share: float) -> str:
    """`99.9 %`: never rounded up to a promise that was not kept."""
    return f"{int(share * 1000) / 10:g} %" if share < 1 else "100 %"
