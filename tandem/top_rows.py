"""What `tandem top` shows, as plain text in cells; `tandem/top.py` draws it. Pure."""

import datetime
from collections.abc import Sequence

from tandem.log_lines import printable
from tandem.messages.membership import PageCounts
from tandem.messages.operations import (
    ClassVerdict,
    Event,
    LiveView,
    NodeView,
    Quantiles,
    Snapshot,
)

CLASS_HEADER = (
    "class", "verdict", "5 m", "1 h", "3 d", "budget", "burn", "limited by", "TTFT p50/p99",
    "target", "TPOT p50/p99", "target",
)  # fmt: skip
NODE_HEADER = (
    "node", "role", "state", "busy", "pages", "used", "prompts", "decoding", "waiting", "tokens/s",
    "transfer", "failed", "beat",
)  # fmt: skip
LIVE_HEADER = ("request", "class", "tenant", "age", "prompt", "prefill", "decode", "attempt")
BAR_WIDTH = 20
MAX_CELL_BYTES = 60


def class_row(verdict: ClassVerdict) -> tuple[str, ...]:
    """One SLA class."""
    windows = [verdict.windows.get(name) for name in ("5m", "1h", "3d")]
    hour = windows[1]
    return (
        cell(verdict.sla_class),
        cell(verdict.verdict),
        *(share(window.attainment if window else None) for window in windows),
        share(verdict.budget_left),
        "-" if hour is None or hour.burn_rate is None else f"{hour.burn_rate:.1f}x",
        cell(verdict.limiting_stage or "-"),
        _quantiles(verdict.stages.ttft),
        f"{verdict.ttft_ms:g} ms",
        _quantiles(verdict.stages.tpot),
        f"{verdict.tpot_ms:g} ms",
    )


def node_row(node: NodeView) -> tuple[str, ...]:
    """One node; its pages as a bar."""
    pages = node.pages
    used = None
    if pages is not None and node.num_pages:
        used = 1 - (pages.free + pages.cached) / node.num_pages
    return (
        cell(node.node_id),
        cell(node.role),
        cell(node.state),
        share(node.busy_share),
        page_bar(pages),
        share(used),
        str(node.num_prefill_waiting),
        str(node.num_decode_running),
        str(node.num_decode_waiting),
        f"{node.tokens_per_s:.0f}",
        f"{node.transfer_bytes_per_s / 1e6:.1f} MB/s",
        str(node.num_transfers_failed),
        f"{node.heartbeat_age_s:.1f} s",
    )


def live_row(live: LiveView) -> tuple[str, ...]:
    """One request in flight."""
    return (
        live.request_id[:12],
        cell(live.sla_class),
        cell(live.tenant),
        f"{live.age_s:.1f} s",
        str(live.num_prompt_tokens),
        cell(live.prefill_node or "-"),
        cell(live.decode_node or "waits"),
        str(live.attempt),
    )


def page_bar(pages: PageCounts | None, width: int = BAR_WIDTH) -> str:
    """`█` pages of requests, `▒` cached ones, `·` free ones."""
    if pages is None:
        return "?" * width
    total: int = sum(getattr(pages, name) for name in PageCounts.__struct_fields__)
    if total == 0:
        return "·" * width
    num_used = total - pages.free - pages.cached
    num_marks = -(-num_used * width // total)  # a single page in use shows
    num_cached = min(round(pages.cached * width / total), width - num_marks)
    return "█" * num_marks + "▒" * num_cached + "·" * (width - num_marks - num_cached)


def headline(snapshot: Snapshot) -> str:
    """What is served, and for how long."""
    balance = snapshot.balance
    mixed = f" + {balance.num_mixed} mixed" if balance.num_mixed else ""
    at = datetime.datetime.fromtimestamp(snapshot.unix_s)
    return (
        f"{cell(snapshot.model or 'no model: no node is there')}  up {duration(snapshot.uptime_s)}"
        f"  P:D {balance.num_prefill}:{balance.num_decode}{mixed}  {at:%H:%M:%S}"
    )


def balance_line(snapshot: Snapshot) -> str:
    """What the balancer thinks, and when it may act again."""
    balance = snapshot.balance
    wait = f" (next change in {balance.cooldown_s:.0f} s)" if balance.cooldown_s else ""
    return f"balance {balance.mode}: {printable(balance.explanation)}{wait}"


def last_decision(events: Sequence[Event]) -> str | None:
    """The latest decision among events."""
    decisions = [event for event in events if event.kind == "decision"]
    return f"last decision: {event_line(decisions[-1])}" if decisions else None


def rates_line(snapshot: Snapshot) -> str:
    """Goodput beside throughput, tokens, refusals."""
    rates = snapshot.rates
    return (
        f"requests {rates.requests:.1f}/s, goodput {rates.goodput:.1f}/s, "
        f"output {rates.output_tokens:.0f} tokens/s, input {rates.input_tokens:.0f} tokens/s, "
        f"shed {rates.shed:.1f}/s, failed {rates.failed:.1f}/s, "
        f"{snapshot.num_live} live, {snapshot.num_queued} queued"
    )


def event_line(event: Event) -> str:
    """A line of the log."""
    at = datetime.datetime.fromtimestamp(event.unix_s)
    return f"{at:%H:%M:%S} {cell(event.kind)}: {printable(event.text)}"


def cell(text: str) -> str:
    """A name from elsewhere: printable and short."""
    return printable(text, MAX_CELL_BYTES)


def share(value: float | None) -> str:
    """A share as per cent."""
    return "-" if value is None else f"{value:.1%}"


def duration(seconds: float) -> str:
    """`3 h 5 min`, `12 min 7 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _quantiles(times: Quantiles | None) -> str:
    return "-" if times is None else f"{times.p50:.0f}/{times.p99:.0f} ms"
