"""`simulate(scenario) -> Result`: one load on one deployment, with one seed. The library's entry.

    profile = load_profile("a100-llama3-8b")
    load = Load(trace=read_trace(path), num_requests=2000, rate=8.0)
    result = simulate(Scenario(profile=profile, layout=parse_layout("2p2d"), load=load))
    print(result.summary()["goodput_per_s"])

Equal scenarios give equal results, on any machine. Seeds change lengths, arrivals, noise and
predictions, each from a stream of its own: with the same seed two policies serve the same requests.
"""

import math
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from loadgen.traces import Trace
from node.growth import Overcommit, ReserveMode
from scheduling.batch.catalogue import make_batch_policy
from scheduling.prefill.catalogue import make_prefill_policy
from scheduling.routing.catalogue import DEFAULT_POLICY, make_policy
from scheduling.routing.placement import QueueLimits
from scheduling.sla import DEFAULT_CLASSES, SlaTable, parse_sla_table
from scheduling.views import Services
from simulator.performance.arrivals import Load
from simulator.performance.balancing import SimBalancing
from simulator.performance.candidates import BlockHolders
from simulator.performance.cluster import Cluster
from simulator.performance.foresight import Foresight
from simulator.performance.meters import Meters
from simulator.performance.node import NodeSettings, SimNode
from simulator.performance.order import Order
from simulator.performance.pages import BlockPages
from simulator.performance.preemption import Preemption
from simulator.performance.profiles import Profile
from simulator.performance.queues import Queues
from simulator.performance.requests import SimRequest
from simulator.performance.residency import Residency
from simulator.performance.results import Result
from simulator.performance.steps import Noise
from simulator.performance.waiting_room import WaitingRoom
from tandem.messages.common import LengthPrediction

# Policies that, with nothing to admit and nothing to prefill, decode all rows in every step and
# keep no count of steps; tests/performance/test_fast_forward.py holds each of them to it.
STEADY_POLICIES = frozenset({"fifo"})
Z90 = 1.2816  # of the standard normal distribution
LOOKAHEAD_STEPS = 4  # as node/__main__.py
_LAYOUT = re.compile(r"(\d+)([pdm])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Nodes by role; mixed ones do both, with chunked prefill."""

    num_prefill: int = 0
    num_decode: int = 0
    num_mixed: int = 0

    def __post_init__(self) -> None:
        """Check what types cannot say."""
        is_served = self.num_mixed or (self.num_prefill and self.num_decode)
        if min(self.num_prefill, self.num_decode, self.num_mixed) < 0 or not is_served:
            raise ValueError(f"{self} cannot serve: give prefill and decode nodes, or mixed ones")

    def __str__(self) -> str:
        """As in `--nodes`."""
        counts = ((self.num_prefill, "p"), (self.num_decode, "d"), (self.num_mixed, "m"))
        return "".join(f"{count}{letter}" for count, letter in counts if count) or "no nodes"

    @property
    def num_nodes(self) -> int:
        """All of them."""
        return self.num_prefill + self.num_decode + self.num_mixed

    @property
    def roles(self) -> list[tuple[str, float, float]]:
        """Name, prefill weight and decode weight of each node."""
        kinds = (
            ("prefill", self.num_prefill, 1.0, 0.0),
            ("decode", self.num_decode, 0.0, 1.0),
            ("mixed", self.num_mixed, 1.0, 1.0),
        )
        return [
            (f"{kind}-{number}", prefill, decode)
            for kind, count, prefill, decode in kinds
            for number in range(count)
        ]


def parse_layout(text: str) -> Layout:
    """`2p3d`, `4m`, `1p2d1m`. Raises ValueError with advice."""
    counts = {letter: int(number) for number, letter in _LAYOUT.findall(text)}
    if not text or _LAYOUT.sub("", text) or len(counts) != len(_LAYOUT.findall(text)):
        raise ValueError(
            f"nodes {text!r}: write 2p3d for 2 prefill and 3 decode nodes, 4m for 4 mixed ones"
        )
    return Layout(
        num_prefill=counts.get("p", 0),
        num_decode=counts.get("d", 0),
        num_mixed=counts.get("m", 0),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A load on a deployment.

    max_output_tokens: what clients ask for; None: exactly what comes, the best case for
    reservation. warmup: the share of requests, the first to arrive, that is not measured.
    drain_s: how long after the last arrival requests may end. fast_forward: run equal decode steps
    at once (the results are the same). max_candidates: nodes offered to the placement policy; None:
    all. predictor_sigma: of the lognormal error of predicted lengths; None: no predictions.
    reserve and page_watermark: as of a node. class_of: SLA class of a request by its index; None:
    `sla_class` for all. balance: change roles as the coordinator does with `--balance on`.
    early_rejection_tolerance: of targets; None: nobody is rejected early. Chunk size and rows
    default to the profile's.
    """

    profile: Profile
    layout: Layout
    load: Load
    seed: int = 0
    batch_policy: str = "fifo"
    batch_options: Mapping[str, str] = field(default_factory=dict)
    prefill_policy: str = "fifo"
    prefill_options: Mapping[str, str] = field(default_factory=dict)
    placement_policy: str = DEFAULT_POLICY
    placement_options: Mapping[str, str] = field(default_factory=dict)
    sla: tuple[str, ...] = DEFAULT_CLASSES
    sla_class: str = "standard"
    max_output_tokens: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_queued_tokens_per_node: int = 65_536
    max_queued_requests_per_node: int = 256
    max_held_requests: int = 1024
    warmup: float = 0.1
    drain_s: float = 3600.0
    fast_forward: bool = True
    max_candidates: int | None = None
    reserve: ReserveMode = "full"
    page_watermark: float = 0.01
    predictor_sigma: float | None = None
    class_of: Callable[[int], str] | None = None
    balance: bool = False
    balance_dwell_s: float = 30.0
    early_rejection_tolerance: float | None = None

    def __post_init__(self) -> None:
        """Check what types cannot say."""
        if not 0 <= self.warmup < 1:
            raise ValueError(f"a warm-up of {self.warmup}: give a share of the requests below 1")
        seqs, tokens = self.num_seqs, self.num_batched_tokens
        if seqs < 1 or tokens < seqs:
            raise ValueError(
                f"{seqs} rows and {tokens} tokens in a step: give at least one row, and as many "
                "tokens as rows"
            )
        if self.balance_dwell_s <= 0:
            raise ValueError(f"a dwell of {self.balance_dwell_s} s: give one above 0")
        tolerance = self.early_rejection_tolerance
        if tolerance is not None and tolerance <= 0:
            raise ValueError(f"a tolerance of {tolerance}: give a factor of the targets above 0")

    @property
    def num_seqs(self) -> int:
        """Rows of a step at most."""
        return self.max_num_seqs or self.profile.max_num_seqs

    @property
    def num_batched_tokens(self) -> int:
        """Tokens of a step at most."""
        return self.max_num_batched_tokens or self.profile.max_num_batched_tokens

    @property
    def sla_table(self) -> SlaTable:
        """Its classes."""
        return parse_sla_table(self.sla, self.sla_class)


def simulate(scenario: Scenario, progress: Callable[[int, int], None] | None = None) -> Result:
    """Run it to its end; `progress` is told how many of its requests have arrived."""
    trace = scenario.load.requests(scenario.seed)
    requests = _make_requests(scenario, trace)
    last_at = requests[-1].arrived_at
    begins_at = requests[int(len(requests) * scenario.warmup)].arrived_at
    meters = Meters(begins_at=begins_at, ends_at=last_at)
    limits = QueueLimits(
        num_tokens=scenario.max_queued_tokens_per_node,
        num_requests=scenario.max_queued_requests_per_node,
    )
    placement = make_policy(scenario.placement_policy, limits, scenario.placement_options)
    profile = scenario.profile
    room = WaitingRoom(profile.costs, scenario.num_batched_tokens, scenario.max_held_requests)
    balancing = SimBalancing(scenario.balance_dwell_s) if scenario.balance else None
    tolerance = scenario.early_rejection_tolerance
    foresight = None if tolerance is None else Foresight(tolerance)
    cluster = Cluster(profile, meters, placement, room, balancing=balancing, foresight=foresight)
    holders = BlockHolders()
    nodes = _make_nodes(scenario, cluster, holders, trace.block_tokens)
    cluster.start(nodes, holders, scenario.max_candidates)
    cluster.run(requests, last_at + scenario.drain_s, progress)
    return Result(
        requests=tuple(requests),
        meters=meters,
        num_nodes=len(cluster.nodes),
        num_illegal_plans=sum(node.num_illegal for node in cluster.nodes),
        num_pages_left=sum(n.pages.num_held + n.pages.num_promised for n in cluster.nodes),
        num_shipped_bytes=cluster.num_shipped_bytes,
        num_events=cluster.num_events,
        sla=scenario.sla_table,
        virtual_s=cluster.now,
        role_changes=() if balancing is None else tuple(balancing.changes),
    )


def simulate_seeds(scenario: Scenario, seeds: tuple[int, ...]) -> list[Result]:
    """The same scenario with several seeds; see `results.summarise` for means and intervals."""
    return [simulate(replace(scenario, seed=seed)) for seed in seeds]


def _make_requests(scenario: Scenario, trace: Trace) -> list[SimRequest]:
    table = scenario.sla_table
    rng = random.Random(f"predictor {scenario.seed}")
    made = []
    for index, traced in enumerate(trace.requests):
        class_name = None if scenario.class_of is None else scenario.class_of(index)
        targets = table.resolve(class_name, None, None)
        limit = scenario.max_output_tokens
        num_output = traced.num_output if limit is None else min(traced.num_output, limit)
        made.append(
            SimRequest(
                index=index,
                arrived_at=traced.arrived_at,
                num_prompt=traced.num_prompt,
                num_output=num_output,
                max_output=num_output if limit is None else limit,
                sla_class=targets.sla_class,
                ttft_s=targets.ttft_ms / 1e3,
                tpot_s=targets.tpot_ms / 1e3,
                blocks=traced.blocks,
                prediction=_predict(num_output, scenario.predictor_sigma, rng),
            )
        )
    return made


def _predict(num_output: int, sigma: float | None, rng: random.Random) -> LengthPrediction | None:
    """The true length times a lognormal error, and the 90 % quantile that such errors give."""
    if sigma is None:
        return None
    median = num_output * math.exp(sigma * rng.gauss(0.0, 1.0))
    return LengthPrediction(score=math.log(median), q50=median, q90=median * math.exp(sigma * Z90))


def _make_nodes(
    scenario: Scenario, cluster: Cluster, holders: BlockHolders, block_tokens: int
) -> list[SimNode]:
    profile = scenario.profile
    if block_tokens % profile.page_size:
        raise ValueError(
            f"the trace shares prefixes by blocks of {block_tokens} tokens: choose a page size "
            f"that divides them, not {profile.page_size}"
        )
    return [
        _make_node(scenario, cluster, holders, block_tokens, index)
        for index in range(scenario.layout.num_nodes)
    ]


def _make_node(
    scenario: Scenario, cluster: Cluster, holders: BlockHolders, block_tokens: int, index: int
) -> SimNode:
    profile = scenario.profile
    name, prefill_weight, decode_weight = scenario.layout.roles[index]
    services = Services(profile.costs)
    block_pages = block_tokens // profile.page_size
    is_full = scenario.reserve == "full"
    num_kept = 0 if is_full else math.ceil(scenario.page_watermark * profile.num_pages)
    pages = BlockPages(
        profile.num_pages,
        block_pages,
        Overcommit(scenario.reserve, num_kept),
        holders.listener(index),
    )
    residency = Residency(pages, profile.page_size, block_tokens)
    settings = NodeSettings(
        profile=profile,
        prefill_weight=prefill_weight,
        decode_weight=decode_weight,
        max_num_seqs=scenario.num_seqs,
        max_num_batched_tokens=scenario.num_batched_tokens,
        lookahead_tokens=LOOKAHEAD_STEPS * scenario.num_batched_tokens,
        block_tokens=block_tokens,
        tpot_s=scenario.sla_table.resolve(None, None, None).tpot_ms / 1e3,
        is_steady=scenario.fast_forward and is_full and _is_steady(scenario),
    )
    queues = Queues()
    order = make_prefill_policy(scenario.prefill_policy, scenario.prefill_options)
    return SimNode(
        index=index,
        name=name,
        settings=settings,
        policy=make_batch_policy(scenario.batch_policy, scenario.batch_options),
        order=Order(order, services, block_pages),
        services=services,
        queues=queues,
        residency=residency,
        preemption=Preemption(profile, services, queues, residency, scenario.num_batched_tokens),
        noise=Noise(profile, scenario.seed, index),
        world=cluster,
    )


def _is_steady(scenario: Scenario) -> bool:
    return scenario.batch_policy in STEADY_POLICIES and not scenario.batch_options
