"""Prometheus rules: the share of missed requests over windows, burn-rate alerts, all others."""

from dataclasses import dataclass
from typing import Literal

from scripts.observability.queries import gauge, increase, rate, total
from tandem import metrics as m

RUNBOOK = "docs/operations.md"
WINDOWS = ("5m", "30m", "1h", "6h", "3d")
BUDGET = "tandem:slo_budget:ratio"
# A page or a ticket needs that many misses in its long window: a night's single slow request is
# none.
MIN_MISSES = 10
# A class that promises 90 % cannot burn its budget at 14.4 times: then nearly all have to miss.
MOST_MISSES = 0.9


@dataclass(frozen=True, slots=True)
class Record:
    """A recording rule."""

    name: str
    expression: str


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert. `meaning` and `advice` may use `{{ $labels.x }}` and `{{ $value }}`."""

    name: str
    expression: str
    wait: str
    severity: Literal["page", "ticket"]
    summary: str
    description: str

    @property
    def anchor(self) -> str:
        """Where docs/operations.md says what to do."""
        return f"{RUNBOOK}#{self.name.lower()}"


@dataclass(frozen=True, slots=True)
class Burn:
    """The budget is spent `factor` times as fast as it may be, over both windows."""

    name: str
    factor: float
    long: str
    short: str
    severity: Literal["page", "ticket"]
    spends: str


BURNS = (
    Burn("TandemSloBurnFast", 14.4, "1h", "5m", "page", "2 % of a month's budget in an hour"),
    Burn("TandemSloBurn", 6, "6h", "30m", "page", "5 % of a month's budget in six hours"),
    Burn("TandemSloBurnSlow", 1, "3d", "6h", "ticket", "10 % of a month's budget in three days"),
)


def missed(window: str) -> str:
    """The recorded share of requests that missed their SLA."""
    return f"tandem:slo_missed:ratio_rate{window}"


def records() -> tuple[Record, ...]:
    """What alerts and boards build on."""
    objective = f"max by (sla_class) ({gauge(m.SLA_OBJECTIVE)})"
    found = [Record(BUDGET, f"clamp_min(1 - {objective}, 0.0001)")]
    for window in WINDOWS:
        met = rate(m.SLO_REQUESTS, "sla_class", window=window, outcome="met")
        ended = rate(m.SLO_REQUESTS, "sla_class", window=window)
        found.append(Record(missed(window), f"1 - {met} / ({ended} > 0)"))
    return tuple(found)


def burn_alert(burn: Burn) -> Alert:
    """Both windows must burn: the long one says that it matters, the short that it goes on."""
    limit = f"clamp_max({burn.factor:g} * {BUDGET}, {MOST_MISSES})"
    misses = increase(m.SLO_REQUESTS, "sla_class", window=burn.long, outcome="!met")
    return Alert(
        name=burn.name,
        expression=(
            f"{missed(burn.long)} > {limit}\n"
            f"and {missed(burn.short)} > {limit}\n"
            f"and {misses} >= {MIN_MISSES}"
        ),
        wait="2m" if burn.severity == "page" else "15m",
        severity=burn.severity,
        summary="SLA class {{ $labels.sla_class }} burns its error budget "
        f"{burn.factor:g} times too fast",
        description=(
            f"{{{{ $value | humanizePercentage }}}} of its requests missed their SLA over "
            f"{burn.long}, and it goes on over {burn.short}: {burn.spends}."
        ),
    )


def alerts() -> tuple[Alert, ...]:
    """All of them, the promise first."""
    return (*map(burn_alert, BURNS), *_members(), *_pages(), *_work())


def _members() -> tuple[Alert, ...]:
    build = gauge(m.BUILD_INFO, role="coordinator")
    return (
        Alert(
            "TandemCoordinatorDown",
            f"absent({build})",
            "1m",
            "page",
            "No coordinator is scraped",
            "Streams in flight go on; new requests wait up to 30 s for a coordinator, then fail.",
        ),
        Alert(
            "TandemNoPrefillNode",
            f"{total(m.NODES, role='prefill|mixed')} == 0",
            "1m",
            "page",
            "No node takes prompts",
            "No node with a prefill role is up and not draining: requests are refused.",
        ),
        Alert(
            "TandemNoDecodeNode",
            f"{total(m.NODES, role='decode|mixed')} == 0",
            "1m",
            "page",
            "No node takes sequences to decode",
            "No node with a decode role is up and not draining: requests are refused.",
        ),
        Alert(
            "TandemNoGateway",
            f"{gauge(m.GATEWAYS)} == 0",
            "1m",
            "page",
            "No gateway says hello",
            "The coordinator hears no gateway: nobody can submit.",
        ),
        Alert(
            "TandemNodeDown",
            f"{increase(m.NODES_LOST, window='10m')} > 0",
            "0m",
            "ticket",
            "A node went down without a goodbye",
            "{{ $value | humanize }} nodes were lost in ten minutes; their requests went on "
            "elsewhere.",
        ),
        Alert(
            "TandemNodeSlow",
            f"{gauge(m.NODE_SLOW)} == 1",
            "10m",
            "ticket",
            "Node {{ $labels.node }} is slow",
            "Its steps take more than five times as long as its peers'; it gets less work.",
        ),
    )


def _pages() -> tuple[Alert, ...]:
    wasted = rate(m.NODE_WASTED_TOKENS, window="15m")
    output = rate(m.NODE_OUTPUT_TOKENS, window="15m")
    return (
        Alert(
            "TandemPoolNearlyFull",
            f"{gauge(m.NODE_PAGES_USED)} > 0.95",
            "5m",
            "ticket",
            "KV pages of node {{ $labels.node }} are nearly all in use",
            "{{ $value | humanizePercentage }} of its pages hold live requests: it preempts, and "
            "new requests wait or are refused.",
        ),
        Alert(
            "TandemPreemptionWaste",
            f"{wasted} / ({output} > 0) > 0.1",
            "15m",
            "ticket",
            "Much is computed twice",
            "For each token that leaves, {{ $value | humanize }} are computed again after "
            "preemptions.",
        ),
        Alert(
            "TandemDrainingPagesStuck",
            f"{gauge(m.NODE_PAGES, state='draining')} > 0",
            "15m",
            "ticket",
            "Pages of node {{ $labels.node }} have been draining for 15 minutes",
            "{{ $value | humanize }} pages wait for proof that a writer or reader has stopped.",
        ),
        Alert(
            "TandemQuarantinedPages",
            f"{gauge(m.NODE_PAGES, state='quarantined')} > 0",
            "5m",
            "ticket",
            "Pages of node {{ $labels.node }} failed their verification",
            "{{ $value | humanize }} pages hold bytes that are not what their writer sent.",
        ),
    )


def _work() -> tuple[Alert, ...]:
    failed = rate(m.NODE_TRANSFERS, "node", window="15m", result="failed")
    sent = rate(m.NODE_TRANSFERS, "node", window="15m")
    num_failed = increase(m.NODE_TRANSFERS, "node", window="15m", result="failed")
    shed = rate(m.SLO_REQUESTS, "sla_class", window="10m", outcome="shed")
    ended = rate(m.SLO_REQUESTS, "sla_class", window="10m")
    return (
        Alert(
            "TandemTransferFailures",
            f"{failed} / ({sent} > 0) > 0.05\nand {num_failed} >= 5",
            "5m",
            "ticket",
            "Hand-offs from node {{ $labels.node }} fail",
            "{{ $value | humanizePercentage }} of its hand-offs failed in 15 minutes; each costs a "
            "second prefill.",
        ),
        Alert(
            "TandemShedding",
            f"{shed} / ({ended} > 0) > 0.05",
            "10m",
            "ticket",
            "Requests of class {{ $labels.sla_class }} are shed",
            "{{ $value | humanizePercentage }} of its requests were refused for overload.",
        ),
        Alert(
            "TandemBalanceInfeasible",
            f"{increase(m.BALANCE_DECISIONS, window='30m', kind='infeasible')} > 5",
            "0m",
            "ticket",
            "No ratio of roles can keep the SLA",
            "The balancer has said so for half an hour: targets are too tight for these nodes, or "
            "there are too few.",
        ),
    )


def render() -> str:
    """The YAML of a rules file; expressions as blocks, so that they can be pasted."""
    lines = [
        "# Written by scripts/make_grafana from tandem/metrics.py; do not edit.",
        "groups:",
        "  - name: tandem-slo",
        "    interval: 30s",
        "    rules:",
    ]
    for record in records():
        lines += [f"      - record: {record.name}", "        expr: |-"]
        lines += [f"          {line}" for line in record.expression.splitlines()]
    lines += ["  - name: tandem-alerts", "    rules:"]
    for alert in alerts():
        lines += _alert_lines(alert)
    return "\n".join(lines) + "\n"


def _alert_lines(alert: Alert) -> list[str]:
    return [
        f"      - alert: {alert.name}",
        "        expr: |-",
        *(f"          {line}" for line in alert.expression.splitlines()),
        f"        for: {alert.wait}",
        "        labels:",
        f"          severity: {alert.severity}",
        "        annotations:",
        f"          summary: {_quoted(alert.summary)}",
        f"          description: {_quoted(alert.description)}",
        f"          runbook: {_quoted(alert.anchor)}",
    ]


def _quoted(text: str) -> str:
    escaped = text.replace("'", "''")
    return f"'{escaped}'"
