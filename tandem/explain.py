"""One request in plain words: where its time went, what limited it, what was decided. Pure."""

import datetime
from collections.abc import Sequence

from tandem.log_lines import printable
from tandem.messages.common import Timeline
from tandem.messages.operations import RequestRecord
from tandem.stages import Stage, stages_of

BAR_WIDTH = 40
BEFORE_FIRST_TOKEN = ("queue", "prefill")  # stages that TTFT consists of
# What a long stage means for whoever runs the deployment.
CAUSES = {
    "place": "at the coordinator it waited for a node with room, or for a node of that role",
    "queue": "prompts before it kept its prefill node busy: more prefill (nodes or weight), or "
    "less load, shortens it",
    "prefill": "computing the prompt itself took that long: a cached prefix or a faster node "
    "shortens it, waiting less does not",
    "transfer": "its KV pages took that long to the decode node: `tandem doctor --coordinator` "
    "shows which way they take, and how fast it is",
    "decode_admission": "the decode node had no room in its batch, or no free KV pages: more "
    "decode (nodes or weight) shortens it",
    "decode": "its decode steps took that long: smaller batches (--max-num-seqs), fewer prompts "
    "computed in the same steps, or more decode nodes shorten it",
}


def render_record(record: RequestRecord) -> str:
    """The whole explanation, several lines."""
    parts = [*_head(record), "", *_waterfall(record), "", f"limits      {explain_limit(record)}"]
    if record.steps:
        parts += ["", "decisions"]
        parts += [f"  +{_ms(step.after_s):<12}{printable(step.text)}" for step in record.steps]
    return "\n".join(parts)


def explain_limit(record: RequestRecord) -> str:
    """What kept the request from being faster, or from succeeding."""
    if record.reason is None:
        return "it has not ended yet"
    if record.reason == "failed":
        return f"it failed: {printable(record.message or record.code or 'for no known reason')}"
    timeline = record.timeline
    stages = () if timeline is None else stages_of(timeline)
    before = [stage for stage in stages if stage.name in BEFORE_FIRST_TOKEN]
    after = [stage for stage in stages if stage.name not in BEFORE_FIRST_TOKEN]
    missed = []
    if record.ttft_ms is not None and record.ttft_ms > record.ttft_target_ms:
        over = record.ttft_ms - record.ttft_target_ms
        missed.append(f"TTFT is {over:.1f} ms over its target; {_largest(before, timeline)}")
    if record.tpot_ms is not None and record.tpot_ms > record.tpot_target_ms:
        over = record.tpot_ms - record.tpot_target_ms
        missed.append(f"TPOT is {over:.1f} ms over its target; {_largest(after, timeline)}")
    if missed:
        return ". ".join(missed)
    if record.sla_attained is False:
        return "the SLA counts it as missed: it ended before its answer was complete"
    return f"nothing: it kept its targets; {_largest(stages, timeline)}"


def _largest(stages: Sequence[Stage], timeline: Timeline | None) -> str:
    if not stages or timeline is None:
        return "no stage of it was reported"
    total_s = sum(stage.seconds for stage in stages)
    longest = max(stages, key=lambda stage: stage.seconds)
    share = longest.seconds / total_s if total_s else 0.0
    node = {
        "queue": timeline.prefill_node,
        "prefill": timeline.prefill_node,
        "decode_admission": timeline.decode_node,
        "decode": timeline.decode_node,
    }.get(longest.name)
    where = f" on {node}" if node else ""
    cause = longest.name
    if cause == "queue" and 2 * (timeline.placed_s or 0.0) > longest.seconds:
        cause, where = "place", ""
    text = f"{share:.0%} of that time was {longest.name.replace('_', ' ')}{where}"
    return f"{text}: {CAUSES[cause]}"


def _head(record: RequestRecord) -> list[str]:
    received = datetime.datetime.fromtimestamp(record.received_unix_s).astimezone()
    timeline = record.timeline
    ended = "is live"
    if record.reason is not None:
        total = timeline.finished_s if timeline else None
        ended = f"ended with {record.reason!r}" + (f" after {_ms(total)}" if total else "")
    verdict = {True: "kept", False: "missed", None: "not known yet"}[record.sla_attained]
    tokens = f"{record.num_prompt_tokens} prompt tokens ({record.num_cached_tokens} cached)"
    attempts = timeline.num_attempts if timeline else 1
    return [
        f"request     {record.request_id}",
        f"received    {received:%Y-%m-%d %H:%M:%S} by {record.gateway_id}, tenant "
        f"{record.tenant}, priority {record.priority}; {ended}",
        f"tokens      {tokens}, {record.num_output_tokens} output tokens"
        + (f"; attempt {attempts}" if attempts > 1 else ""),
        f"SLA         {verdict}, class {record.sla_class}: "
        f"TTFT {_against(record.ttft_ms, record.ttft_target_ms)}, "
        f"TPOT {_against(record.tpot_ms, record.tpot_target_ms)}"
        + (f", longest gap {record.max_itl_ms:.1f} ms" if record.max_itl_ms is not None else ""),
    ]


def _waterfall(record: RequestRecord) -> list[str]:
    timeline = record.timeline
    stages = () if timeline is None else stages_of(timeline)
    if timeline is None or not stages:
        return ["no stage of it has been reported"]
    total_s = max(stage.ends_s for stage in stages)
    lines = [f"{'stage':<17}{'took':>12}{'share':>8}"]
    for stage in stages:
        share = stage.seconds / total_s if total_s > 0 else 0.0
        bar = bar_of(stage.begins_s, stage.ends_s, total_s)
        name = stage.name.replace("_", " ")
        row = f"{name:<17}{_ms(stage.seconds):>12}{share:>8.1%}  {bar}  {_where(stage, timeline)}"
        lines.append(row.rstrip())
    target_s = record.ttft_target_ms / 1000
    if 0 < target_s < total_s:
        column = min(int(target_s / total_s * BAR_WIDTH), BAR_WIDTH - 1)
        lines.append(f"{'TTFT target':<17}{_ms(target_s):>12}{'':>8}  {' ' * column}^")
    return lines


def _where(stage: Stage, timeline: Timeline) -> str:
    """On which node, or how much."""
    match stage.name:
        case "queue":
            placed = timeline.placed_s
            return "" if placed is None else f"placed after {_ms(placed)}"
        case "prefill":
            return timeline.prefill_node or timeline.decode_node or ""
        case "transfer":
            mib = timeline.transfer_bytes / (1 << 20)
            return f"{mib:.1f} MiB, less what overlaps with prefill" if mib else ""
        case "decode":
            return timeline.decode_node or ""
    return ""


def bar_of(begin_s: float, end_s: float, total_s: float, width: int = BAR_WIDTH) -> str:
    """A bar of at least one mark between two moments of `total_s`."""
    if total_s <= 0:
        return " " * width
    first = min(int(begin_s / total_s * width), width - 1)
    last = max(min(round(end_s / total_s * width), width), first + 1)
    return " " * first + "█" * (last - first) + " " * (width - last)


def _against(found_ms: float | None, target_ms: float) -> str:
    found = "-" if found_ms is None else f"{found_ms:.1f}"
    return f"{found} of {target_ms:g} ms"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
