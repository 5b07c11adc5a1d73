"""The coordinator's GET /metrics: the core's state at the scrape, ended requests as they came.

`CoordinatorMetrics.collect(now)` is what becomes the text. The shell tells `ended` of every request
once, and `refused` of every question that it answers no.
"""

from collections.abc import Iterator

from prometheus_client.metrics_core import Metric as Family

from coordinator.core import Coordinator
from coordinator.metrics_nodes import node_families
from coordinator.metrics_vllm import vllm_families
from scheduling.sla import SlaTable
from tandem import metrics as m
from tandem.exposition import Capped, Tally, family, render
from tandem.messages.common import SlaTargets
from tandem.messages.placement import PlaceRefused, RequestEnded
from tandem.stages import stages_of
from tandem.version import installed_version

STAGES = {
    "queue": m.QUEUE,
    "prefill": m.PREFILL,
    "transfer": m.TRANSFER,
    "decode_admission": m.DECODE_ADMISSION,
}


class CoordinatorMetrics:
    """See the module. `with_vllm_names`: also under the names that vLLM has for them."""

    def __init__(self, core: Coordinator, *, with_vllm_names: bool = False) -> None:
        self._core = core
        self._version = installed_version()
        self._sla = core.sla
        self._with_vllm_names = with_vllm_names
        self._tenants = Capped(m.MAX_TENANTS)
        self._tally = Tally(_targets_s(core.sla))
        self._begin()

    def _begin(self) -> None:
        """Series that exist before anything happened: a rate needs a first value."""
        for name in self._sla.classes:
            for outcome in m.OUTCOMES:
                self._tally.add(m.SLO_REQUESTS, (name, outcome), 0)
            for reason in ("stop", "length", "cancelled", "failed"):
                self._tally.add(m.REQUESTS_ENDED, (name, reason), 0)
            for counter in (m.PROMPT_TOKENS, m.OUTPUT_TOKENS, m.CACHED_TOKENS):
                self._tally.add(counter, (name,), 0)
            for histogram in (m.TTFT, m.TPOT, m.MAX_ITL, m.E2E, *STAGES.values()):
                self._tally.histogram(histogram, (name,))
        self._tally.add(m.PLACEMENTS_REFUSED, ("overloaded",), 0)
        self._tally.add(m.REQUEST_ERRORS, ("internal",), 0)
        for kind in ("decision", "member", "order", "request", "error"):
            self._tally.add(m.EVENTS, (kind,), 0)

    # --- what happens -----------------------------------------------------------------------

    def ended(self, report: RequestEnded) -> None:
        """A request has ended; to be told once, however often it is reported."""
        name = report.sla_class or self._sla.default
        if name not in self._sla.classes:
            name = m.OTHER
        outcome = outcome_of(report, self._targets(report, name))
        tally, tenant = self._tally, self._tenants.label(report.tenant)
        tally.add(m.SLO_REQUESTS, (name, outcome))
        tally.add(m.TENANT_REQUESTS, (tenant, outcome))
        tally.add(m.REQUESTS_ENDED, (name, report.reason))
        if report.reason == "failed":
            tally.add(m.REQUEST_ERRORS, (report.code or "internal",))
        tally.add(m.PROMPT_TOKENS, (name,), report.num_prompt_tokens)
        tally.add(m.OUTPUT_TOKENS, (name,), report.num_output_tokens)
        tally.add(m.CACHED_TOKENS, (name,), report.num_cached_tokens)
        tally.add(m.TENANT_TOKENS, (tenant, "prompt"), report.num_prompt_tokens)
        tally.add(m.TENANT_TOKENS, (tenant, "output"), report.num_output_tokens)
        self._observe(name, report)

    def _targets(self, report: RequestEnded, name: str) -> SlaTargets | None:
        if report.targets is not None or name not in self._sla.classes:
            return report.targets
        return self._sla.classes[name].targets

    def _observe(self, name: str, report: RequestEnded) -> None:
        durations_ms = (
            (m.TTFT, report.ttft_ms),
            (m.TPOT, report.tpot_ms),
            (m.MAX_ITL, report.max_itl_ms),
        )
        for metric, value_ms in durations_ms:
            if value_ms is not None:
                self._tally.histogram(metric, (name,)).observe(value_ms / 1e3)
        if report.timeline is None:
            return
        if report.timeline.finished_s is not None:
            self._tally.histogram(m.E2E, (name,)).observe(max(0.0, report.timeline.finished_s))
        for stage in stages_of(report.timeline):
            if stage.name in STAGES:
                self._tally.histogram(STAGES[stage.name], (name,)).observe(stage.seconds)

    def refused(self, answer: PlaceRefused) -> None:
        """A question for nodes was answered no."""
        self._tally.add(m.PLACEMENTS_REFUSED, (answer.code,))

    def turned_away(self, name: str, num_requests: int) -> None:
        """A gateway refused requests of a class by itself."""
        known = name if name in self._sla.classes else m.OTHER
        self._tally.add(m.SLO_REQUESTS, (known, "shed"), num_requests)

    def event(self, kind: str) -> None:
        """A line of the event log: decision, member, order, request or error."""
        self._tally.add(m.EVENTS, (kind,))

    # --- a scrape ---------------------------------------------------------------------------

    def collect(self, now: float) -> list[Family]:
        """What `tandem.exposition.render` makes text of, on any thread: with 100 nodes that takes
        five times as long as this does. `now` is on the core's clock."""
        return list(self._families(now))

    def render(self, now: float) -> bytes:
        """The text at once."""
        return render(self.collect(now))

    def _families(self, now: float) -> Iterator[Family]:
        core, members = self._core, self._core.members
        yield family(m.BUILD_INFO, {(self._version, "coordinator"): 1})
        model = members.deployment
        if model is not None:
            yield family(m.MODEL_INFO, {(model.model.served_name,): 1})
        yield family(m.NODES_LOST, {(): members.num_lost})
        yield family(m.GATEWAYS, {(): len(members.gateways)})
        yield family(m.LIVE_REQUESTS, {(): len(core.placements)})
        yield family(m.HELD_REQUESTS, {(): core.admission.num_held})
        num_by_kind = core.balancing.num_by_kind
        yield family(m.BALANCE_DECISIONS, {(kind,): num for kind, num in num_by_kind.items()})
        num_dropped = core.num_dropped + members.num_bad_loads + core.admission.num_dropped
        yield family(m.MESSAGES_DROPPED, {(): num_dropped})
        yield from self._promises()
        yield from node_families(members.nodes.values(), now)
        yield from self._tally.families()
        if self._with_vllm_names:
            yield from vllm_families(members, core.admission.num_held, self._tally)

    def _promises(self) -> Iterator[Family]:
        classes = self._sla.classes.values()
        targets = {(each.name, "ttft"): each.ttft_ms / 1e3 for each in classes}
        targets |= {(each.name, "tpot"): each.tpot_ms / 1e3 for each in classes}
        yield family(m.SLA_TARGET, targets)
        yield family(m.SLA_OBJECTIVE, {(each.name,): each.attainment for each in classes})


def outcome_of(report: RequestEnded, targets: SlaTargets | None) -> str:
    """One of `tandem.metrics.OUTCOMES`."""
    if report.reason == "failed":
        return "shed" if report.code == "overloaded" else "error"
    if report.sla_attained:
        return "met"
    if targets is None:
        return "ttft"
    is_ttft_late = report.ttft_ms is None or report.ttft_ms > targets.ttft_ms
    is_tpot_late = report.tpot_ms is not None and report.tpot_ms > targets.tpot_ms
    if is_ttft_late and is_tpot_late:
        return "both"
    return "tpot" if is_tpot_late else "ttft"


def _targets_s(table: SlaTable) -> set[float]:
    """Bounds that histograms need, so that the share within a target is exact."""
    targets = [each.targets for each in table.classes.values()]
    return {t.ttft_ms / 1e3 for t in targets} | {t.tpot_ms / 1e3 for t in targets}
