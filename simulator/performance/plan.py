"""What `tandem plan` found, and its verdict in words. Pure."""

from dataclasses import dataclass
from typing import Any

from simulator.performance.break_even import BreakEven
from simulator.performance.results import Interval
from simulator.performance.scenario import Layout

CLEAR_GAIN = 1.05  # what disaggregation must gain to be worth a second role and a network


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """A deployment: what the search chooses from."""

    layout: Layout
    chunk_tokens: int
    batch_policy: str

    def __str__(self) -> str:
        """For people."""
        return f"{self.layout}, chunks of {self.chunk_tokens}, {self.batch_policy}"

    def document(self) -> dict[str, Any]:
        """For programs."""
        return {
            "nodes": str(self.layout),
            "chunk_tokens": self.chunk_tokens,
            "batch_policy": self.batch_policy,
        }


@dataclass(frozen=True, slots=True)
class Sizing:
    """A setup and its capacity: the highest rate that keeps the SLA, over seeds."""

    setup: Setup
    capacities: tuple[float, ...]
    capacity: Interval

    @property
    def per_node(self) -> float:
        """Requests per second and node within the SLA."""
        return self.capacity.mean / self.setup.layout.num_nodes

    def document(self) -> dict[str, Any]:
        """For programs."""
        return self.setup.document() | {
            "capacity_per_s": self.capacity.mean,
            "plus_minus": _finite(self.capacity.plus_minus),
            "goodput_per_node": self.per_node,
        }

    def __str__(self) -> str:
        """For people."""
        within = _finite(self.capacity.plus_minus)
        spread = "" if within is None else f" ± {within:.2g}"
        return (
            f"{self.capacity.mean:.4g}{spread} requests/s, {self.per_node:.4g} per node "
            f"({self.setup})"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`split` and `mixed`: the fewest nodes that keep the SLA at the rate, None where none do."""

    profile: str
    trace: str
    rate: float
    sla: str
    max_nodes: int
    split: Setup | None
    mixed: Setup | None
    compared: tuple[Sizing, Sizing]  # disaggregated and colocated, the same number of nodes
    break_even: BreakEven
    curves: tuple[tuple[str, list[tuple[float, float]]], ...]

    @property
    def gains(self) -> tuple[float, ...]:
        """Capacity of the disaggregated over that of the colocated deployment, by seed."""
        split, mixed = self.compared
        pairs = zip(split.capacities, mixed.capacities, strict=True)
        return tuple(a / b for a, b in pairs if b > 0)

    @property
    def should_disaggregate(self) -> bool:
        """Whether every seed says that it gains enough, and it serves the rate at all."""
        split, mixed = self.compared
        if mixed.capacity.mean == 0 or not self.gains:
            return split.capacity.mean > 0
        return min(self.gains) >= CLEAR_GAIN

    def verdict(self) -> str:
        """An honest answer."""
        split, mixed = self.compared
        num_nodes = split.setup.layout.num_nodes
        if split.capacity.mean == mixed.capacity.mean == 0:
            return (
                f"neither: no deployment of {num_nodes} nodes keeps this SLA at any rate that was "
                "tried; loosen the targets, or take faster nodes"
            )
        if not self.gains:
            return f"yes: {num_nodes} colocated nodes do not keep this SLA at any rate"
        low, high = min(self.gains), max(self.gains)
        seen = f"{low:.2f} to {high:.2f} times the goodput of {num_nodes} colocated nodes"
        if self.should_disaggregate:
            return f"yes: {split.setup.layout} has {seen}"
        if high < 1.0:
            return f"no: {split.setup.layout} has only {seen}"
        return (
            f"no: {split.setup.layout} has {seen}, which is no clear gain; colocated nodes with "
            "chunked prefill are simpler"
        )

    def text(self) -> str:
        """For people."""
        split, mixed = self.compared
        return "\n".join(
            [
                f"{self.profile}, {self.trace} at {self.rate:.4g} requests/s, SLA {self.sla}",
                "",
                f"fewest nodes   disaggregated: {self._fewest(self.split)}",
                f"               colocated:     {self._fewest(self.mixed)}",
                f"same nodes     disaggregated: {split}",
                f"               colocated:     {mixed}",
                f"P:D            {split.setup.layout.num_prefill}:{split.setup.layout.num_decode}",
                f"break-even     {self.break_even}",
                f"disaggregate?  {self.verdict()}",
            ]
        )

    def _fewest(self, setup: Setup | None) -> str:
        return f"none up to {self.max_nodes} nodes" if setup is None else str(setup)

    def document(self) -> dict[str, Any]:
        """For programs."""
        split, mixed = self.compared
        return {
            "command": "plan",
            "profile": self.profile,
            "trace": self.trace,
            "rate": self.rate,
            "sla": self.sla,
            "fewest_disaggregated": None if self.split is None else self.split.document(),
            "fewest_colocated": None if self.mixed is None else self.mixed.document(),
            "disaggregated": split.document(),
            "colocated": mixed.document(),
            "gains": list(self.gains),
            "break_even_tokens": self.break_even.num_tokens,
            "should_disaggregate": self.should_disaggregate,
            "verdict": self.verdict(),
        }


def _finite(value: float) -> float | None:
    """None for the infinite width of a single seed: JSON has no infinity."""
    return value if value < float("inf") else None
