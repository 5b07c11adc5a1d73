"""Metrics of every node, from its record and its last heartbeat."""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.metrics_core import Metric as Family

from coordinator.members import PAGE_STATES, NodeRecord
from coordinator.pool_use import used_share
from tandem import metrics as m
from tandem.exposition import family
from tandem.messages.membership import NodeLoad, RoleWeights
from tandem.metrics import Metric

Read = Callable[[NodeLoad], float]
# One value per node, read from its load.
SIMPLE: tuple[tuple[Metric, Read], ...] = (
    (m.NODE_STEP_AGE, lambda load: load.step_age_s),
    (m.NODE_PAGES_USED, lambda load: used_share(load)),
    (m.NODE_HELD_PAGES, lambda load: load.num_held_pages),
    (m.NODE_HELD_TOKENS, lambda load: load.num_held_tokens),
    (m.NODE_PREFILL_TOKENS_WAITING, lambda load: load.num_prefill_tokens_waiting),
    (m.NODE_DECODE_TOKENS, lambda load: load.num_decode_tokens),
    (m.NODE_OUTPUT_TOKENS, lambda load: load.num_tokens_out),
    (m.NODE_STEPS, lambda load: load.num_steps),
    (m.NODE_BUSY, lambda load: load.busy_s),
    (m.NODE_PREEMPTIONS, lambda load: load.num_preempted),
    (m.NODE_WASTED_TOKENS, lambda load: load.num_wasted_tokens),
    (m.NODE_TRANSFER_BYTES, lambda load: load.transfer_bytes),
)
# Several values per node, by one more label.
STAGES: tuple[tuple[str, Read], ...] = (
    ("prefill_waiting", lambda load: load.num_prefill_waiting),
    ("transferring", lambda load: load.num_transfers),
    ("decode_waiting", lambda load: load.num_decode_waiting),
    ("decode_running", lambda load: load.num_decode_running),
)
RESULTS: tuple[tuple[str, Read], ...] = (
    ("done", lambda load: load.num_transfers_done),
    ("failed", lambda load: load.num_transfers_failed),
)


def _pages_in(state: str) -> Read:
    return lambda load: getattr(load.pages, state)


PAGES: tuple[tuple[str, Read], ...] = tuple((each, _pages_in(each)) for each in PAGE_STATES)
BY_LABEL = ((m.NODE_REQUESTS, STAGES), (m.NODE_TRANSFERS, RESULTS), (m.NODE_PAGES, PAGES))


def role_name(weights: RoleWeights) -> str:
    """prefill, decode, mixed or closed."""
    if weights.prefill and weights.decode:
        return "mixed"
    if weights.prefill or weights.decode:
        return "prefill" if weights.prefill else "decode"
    return "closed"


def node_families(nodes: Iterable[NodeRecord], now: float) -> Iterator[Family]:
    """All that is known of them; a node without a heartbeat yet has only what its record says."""
    records = {(r.ref.node_id, role_name(r.weights)): r for r in nodes}
    roles = dict.fromkeys(m.ROLES, 0)
    for (_, role), record in records.items():
        roles[role] += not record.draining
    yield family(m.NODES, {(role,): num for role, num in roles.items()})
    yield family(m.NODES_DRAINING, {(): sum(r.draining for r in records.values())})
    yield family(m.NODE_UP, dict.fromkeys(records, 1))
    yield family(m.NODE_DRAINING, {labels: r.draining for labels, r in records.items()})
    yield family(m.NODE_SLOW, {labels: r.is_slow for labels, r in records.items()})
    ages = {labels: max(0.0, now - r.last_seen) for labels, r in records.items()}
    yield family(m.NODE_HEARTBEAT_AGE, ages)
    loads = {labels: r.load for labels, r in records.items() if r.load is not None}
    yield from _load_families(loads)


def _load_families(loads: dict[tuple[str, str], NodeLoad]) -> Iterator[Family]:
    for metric, read in SIMPLE:
        yield family(metric, {labels: read(load) for labels, load in loads.items()})
    for metric, reads in BY_LABEL:
        values = {
            (*labels, value): read(load) for labels, load in loads.items() for value, read in reads
        }
        yield family(metric, values)
    known = {labels: load.costs for labels, load in loads.items() if load.costs is not None}
    yield family(m.NODE_COST_ERROR, {labels: costs.error for labels, costs in known.items()})
