"""Which nodes make no progress, and which are much slower than their peers. Pure."""

import statistics
from collections.abc import Iterable, Iterator

from coordinator.members import NodeRecord
from scheduling.liveness import is_wedged
from tandem.messages.membership import NodeLoad

SLOW_FACTOR = 5.0
NO_LONGER_SLOW_FACTOR = 2.5
SLOW_AFTER_S = 5.0
MAX_SLOW_SHARE = 0.3
MIN_SPEED = 0.05
# Longer than a heartbeat and a slow step, and soon enough that a node that recovered gets a try.
EVIDENCE_S = 10.0


def explain_wedge(load: NodeLoad) -> str | None:
    """Why a node that beats is down all the same: its step loop stands still. None: it does not."""
    if not is_wedged(load):
        return None
    return (
        f"wedged: it has work, and its step has taken {load.step_age_s:.1f} s where "
        f"{load.predicted_step_s:.2f} s were predicted"
    )


def find_outliers(nodes: Iterable[NodeRecord], now: float) -> Iterator[str]:
    """Lower the speed of nodes whose steps take far longer than their peers'; yields the changes.

    Compared are nodes of the same roles. At most 30 % of them (but one of two) are slow at a time,
    so the pool never loses its last ones, and a load that slows everybody makes nobody slow.
    """
    pools: dict[tuple[bool, bool], list[NodeRecord]] = {}
    for node in nodes:
        weights = node.weights
        pools.setdefault((weights.prefill > 0, weights.decode > 0), []).append(node)
    for pool in pools.values():
        yield from _judge(pool, now)


def _judge(pool: list[NodeRecord], now: float) -> Iterator[str]:
    times = {node.ref.node_id: _judged_step_s(node, now) for node in pool}
    known = [time_s for time_s in times.values() if time_s > 0]
    # A node that works alone has nothing to be compared with: what was found before stands.
    is_alone = len(known) < 2 and len(pool) > 1
    usual_s = statistics.median_low(known) if known and not is_alone else 0.0
    num_allowed = max(1, int(MAX_SLOW_SHARE * len(known))) if len(known) > 1 else 0
    num_slow = sum(node.is_slow for node in pool)
    for node in pool:
        time_s = times[node.ref.node_id]
        if usual_s == 0 or time_s <= SLOW_FACTOR * usual_s:
            node.slow_since = None
        elif node.slow_since is None:
            node.slow_since = now
        if node.is_slow and _is_verdict_over(node, time_s, usual_s, now):
            node.speed, node.candidate = 1.0, None
            num_slow -= 1
            fate = "keeps up with its peers again" if time_s > 0 else "is idle, and gets a new try"
            yield f"node {node.ref.node_id} {fate}"
        elif node.slow_since is None or now - node.slow_since < SLOW_AFTER_S:
            continue
        elif node.is_slow or num_slow < num_allowed:
            is_new = not node.is_slow
            node.speed, node.candidate = max(MIN_SPEED, usual_s / time_s), None
            num_slow += is_new
            if is_new:
                yield (
                    f"node {node.ref.node_id} is slow: a step takes {time_s:.2f} s, its peers' "
                    f"{usual_s:.2f} s; it gets less work"
                )


def _is_verdict_over(node: NodeRecord, time_s: float, usual_s: float, now: float) -> bool:
    """Whether a slow node keeps up again, or has shown nothing for a while: that proves nothing."""
    if time_s > 0:
        return usual_s > 0 and time_s <= NO_LONGER_SLOW_FACTOR * usual_s
    return now - node.evidence_at > EVIDENCE_S


def _judged_step_s(node: NodeRecord, now: float) -> float:
    """How long a node's steps take: predicted, or what the running one has taken by now.

    0 where nothing shows it: an idle node, or one without a step of late, predicts from work that
    it had long ago.
    """
    load = node.load
    if load is None or not load.has_work:
        return 0.0
    if load.num_steps != node.evidence_steps:
        node.evidence_steps, node.evidence_at = load.num_steps, now
    if now - node.evidence_at > EVIDENCE_S:
        return load.step_age_s
    return max(load.predicted_step_s, load.step_age_s)
