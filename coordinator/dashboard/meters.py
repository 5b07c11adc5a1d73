"""Rates of the last ten seconds, from counters that only grow. Pure."""

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass

from coordinator.members import NodeRecord

SPAN_S = 10.0
NUM_SAMPLES = 11
COUNTED = ("requests", "goodput", "input_tokens", "shed", "failed")


@dataclass(frozen=True, slots=True)
class NodePace:
    """What a node did per second; None where only one heartbeat of it is known."""

    tokens_per_s: float = 0.0
    transfer_bytes_per_s: float = 0.0
    busy_share: float | None = None


@dataclass(frozen=True, slots=True)
class _Counts:
    at: float
    num_tokens: int
    num_bytes: int
    busy_s: float


class NodeMeters:
    """Paces of nodes by their heartbeats."""

    def __init__(self) -> None:
        self._samples: dict[tuple[str, int], deque[_Counts]] = {}

    def sample(self, nodes: Iterable[NodeRecord]) -> None:
        """Look at all nodes; once per second."""
        seen = {}
        for node in nodes:
            key = (node.ref.node_id, node.ref.incarnation)
            samples = seen[key] = self._samples.get(key) or deque(maxlen=NUM_SAMPLES)
            load = node.load
            if load is not None and (not samples or node.last_seen > samples[-1].at):
                counts = _Counts(
                    node.last_seen, load.num_tokens_out, load.transfer_bytes, load.busy_s
                )
                samples.append(counts)
        self._samples = seen

    def pace(self, node: NodeRecord, now: float) -> NodePace:
        """Over the last ten seconds; nothing where the node has been silent for as long."""
        samples = self._samples.get((node.ref.node_id, node.ref.incarnation))
        if samples is None or len(samples) < 2 or now - samples[-1].at > SPAN_S:
            return NodePace()
        last = samples[-1]
        first = next(each for each in samples if each.at >= now - SPAN_S - 1.0)
        seconds = last.at - first.at
        if seconds <= 0:
            return NodePace()
        return NodePace(
            tokens_per_s=max(0, last.num_tokens - first.num_tokens) / seconds,
            transfer_bytes_per_s=max(0, last.num_bytes - first.num_bytes) / seconds,
            busy_share=min(1.0, max(0.0, last.busy_s - first.busy_s) / seconds),
        )


class RequestMeter:
    """Counts of requests by second."""

    def __init__(self) -> None:
        self._now: Counter[str] = Counter()
        self._seconds: deque[Counter[str]] = deque(maxlen=round(SPAN_S))

    def count(self, what: str, num: float = 1) -> None:
        """Something of `COUNTED` happened."""
        self._now[what] += num  # type: ignore[assignment]

    def tick(self) -> Counter[str]:
        """A second is over; what happened in it."""
        self._seconds.append(self._now)
        past, self._now = self._now, Counter()
        return past

    def per_s(self, what: str) -> float:
        """Over the last ten seconds, or since the start where that is later."""
        return sum(each[what] for each in self._seconds) / max(1, len(self._seconds))
